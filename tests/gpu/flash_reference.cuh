// Oracles for the attention kernels: plain loops, one block of threads a query row.
// reference: everything in double. plain: what an unfused bf16 implementation does (scores, probabilities and outputs
// rounded to bf16, sums in f32); twice its error against the reference is the tolerance of the kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "attention/flash/flash_params.h"

namespace sfa::test {

struct OracleOutput {
  double* out;       // [B, Tq, H, Dv]
  double* lse;       // [B, H, Tq]
  float* plain_out;  // as out
  float* plain_lse;  // as lse
};

__host__ __device__ inline void visible_keys(const flash::Shape& s, const flash::Ranges& r, int b, int i, int& lo,
                                             int& hi) {
  const int p = i + r.query_offset;
  hi = s.Tk;
  if (r.causal) hi = p + 1 < 0 ? 0 : (p + 1 < s.Tk ? p + 1 : s.Tk);
  lo = 0;
  if (r.window > 0 && p + 1 - r.window > lo) lo = p + 1 - r.window;
  if (r.first_key != nullptr) {
    const int f = r.first_key[static_cast<long long>(b) * s.Tq + i];
    if (f > lo) lo = f;
  }
}

inline __device__ double block_sum(double x, double* scratch) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  double total = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) total += scratch[w];
  __syncthreads();
  return total;
}
inline __device__ double block_max(double x, double* scratch) {
  for (int d = 16; d > 0; d /= 2) x = fmax(x, __shfl_xor_sync(0xffffffffu, x, d));
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  double best = scratch[0];
  for (unsigned w = 1; w < blockDim.x / 32; ++w) best = fmax(best, scratch[w]);
  __syncthreads();
  return best;
}

/// Grid: B * H * Tq blocks of 128 threads; dynamic shared memory: Tk doubles. params.out and params.lse are not used.
static __global__ void oracle_kernel(flash::ForwardParams params, OracleOutput oracle) {
  extern __shared__ double score[];
  __shared__ double scratch[4];
  const flash::Shape s = params.shape;
  const int i = blockIdx.x % s.Tq, h = blockIdx.x / s.Tq % s.H, b = blockIdx.x / (s.Tq * s.H);
  const int g = h / (s.H / s.G);
  const auto* q = static_cast<const __nv_bfloat16*>(params.q) + b * params.q_stride.batch + i * params.q_stride.token +
                  h * params.q_stride.head;
  const auto* k = static_cast<const __nv_bfloat16*>(params.k) + b * params.k_stride.batch + g * params.k_stride.head;
  const auto* v = static_cast<const __nv_bfloat16*>(params.v) + b * params.v_stride.batch + g * params.v_stride.head;
  int lo, hi;
  visible_keys(s, params.ranges, b, i, lo, hi);
  const long long out_row = ((static_cast<long long>(b) * s.Tq + i) * s.H + h) * s.Dv;
  const long long lse_at = (static_cast<long long>(b) * s.H + h) * s.Tq + i;
  for (int plain = 0; plain < 2; ++plain) {
    double best = -INFINITY;
    for (int j = lo + static_cast<int>(threadIdx.x); j < hi; j += blockDim.x) {
      double dot = 0;
      for (int c = 0; c < s.Dqk; ++c)
        dot += static_cast<double>(__bfloat162float(q[c])) * __bfloat162float(k[j * params.k_stride.token + c]);
      double x = dot * params.scale;
      if (plain) x = __bfloat162float(__float2bfloat16(static_cast<float>(x)));
      score[j - lo] = x;
      best = fmax(best, x);
    }
    best = block_max(best, scratch);
    double sum = 0;
    for (int j = lo + static_cast<int>(threadIdx.x); j < hi; j += blockDim.x) {
      score[j - lo] = plain ? expf(static_cast<float>(score[j - lo] - best)) : exp(score[j - lo] - best);
      sum += score[j - lo];
    }
    sum = block_sum(sum, scratch);
    for (int c = threadIdx.x; c < s.Dv; c += blockDim.x) {
      double o = 0;
      float o32 = 0;
      for (int j = lo; j < hi; ++j) {
        const float value = __bfloat162float(v[j * params.v_stride.token + c]);
        if (plain)
          o32 += __bfloat162float(__float2bfloat16(static_cast<float>(score[j - lo] / sum))) * value;
        else
          o += score[j - lo] * value;
      }
      if (plain)
        oracle.plain_out[out_row + c] = hi > lo ? __bfloat162float(__float2bfloat16(o32)) : 0.0f;
      else
        oracle.out[out_row + c] = hi > lo ? o / sum : 0.0;
    }
    if (threadIdx.x == 0) {
      const double lse = hi > lo ? best + log(sum) : -INFINITY;
      if (plain)
        oracle.plain_lse[lse_at] = static_cast<float>(lse);
      else
        oracle.lse[lse_at] = lse;
    }
    __syncthreads();
  }
}

}  // namespace sfa::test
