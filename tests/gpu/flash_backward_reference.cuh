// Plain attention, forward and backward, as oracle for the tiled kernels: every matrix is written out, one thread an
// element, sums in f64. With `rounded` it is instead what a plain bf16 program does: P, O, dP, dS and the results are
// rounded to bf16 where such a program would store them; its error against the exact run is the yardstick.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "attention/flash/flash_params.h"

namespace sfa::test {

using flash::Ranges;
using flash::Shape;
using flash::Strides;
using bf16 = __nv_bfloat16;

/// Strided bf16 operand [B, T, heads, D].
struct Operand {
  const bf16* data;
  Strides stride;
  __host__ __device__ double at(int b, int t, int h, int c) const {
    return static_cast<double>(__bfloat162float(data[b * stride.batch + t * stride.token + h * stride.head + c]));
  }
};

struct Problem {
  Shape shape;
  Ranges ranges;
  double scale;
  Operand q, k, v, d_out;
};

/// Dense f64 results, [B, H, Tq, D] or [B, G, Tk, D]; lse [B, H, Tq].
struct Results {
  double *out, *lse, *d_q, *d_k, *d_v;
};

__host__ __device__ inline double round_bf16(double x) {
  return static_cast<double>(__bfloat162float(__float2bfloat16(static_cast<float>(x))));
}

__host__ __device__ inline bool visible(const Problem& p, int b, int i, int j) {
  const int position = i + p.ranges.query_offset;
  if (p.ranges.causal && j > position) return false;
  if (p.ranges.window > 0 && j < position + 1 - p.ranges.window) return false;
  return p.ranges.first_key == nullptr || j >= p.ranges.first_key[b * p.shape.Tq + i];
}

/// s, dp: [Tq, Tk] of one head.
__global__ void reference_products(Problem p, int b, int h, bool rounded, double* s, double* dp) {
  const int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y;
  if (j >= p.shape.Tk) return;
  const int g = h / (p.shape.H / p.shape.G);
  double score = 0, gradient = 0;
  for (int c = 0; c < p.shape.Dqk; ++c) score += p.q.at(b, i, h, c) * p.k.at(b, j, g, c);
  for (int c = 0; c < p.shape.Dv; ++c) gradient += p.d_out.at(b, i, h, c) * p.v.at(b, j, g, c);
  const std::int64_t at = static_cast<std::int64_t>(i) * p.shape.Tk + j;
  s[at] = visible(p, b, i, j) ? score * p.scale : -INFINITY;
  dp[at] = rounded ? round_bf16(gradient) : gradient;
}

__device__ inline double block_reduce(double x, bool maximum) {
  __shared__ double part[256];
  part[threadIdx.x] = x;
  __syncthreads();
  for (int step = 128; step > 0; step /= 2) {
    if (threadIdx.x < step)
      part[threadIdx.x] =
          maximum ? fmax(part[threadIdx.x], part[threadIdx.x + step]) : part[threadIdx.x] + part[threadIdx.x + step];
    __syncthreads();
  }
  const double result = part[0];
  __syncthreads();
  return result;
}

/// A block a row: s becomes P, dp becomes dS; writes out and lse.
__global__ void reference_rows(Problem p, int b, int h, bool rounded, double* s, double* dp, Results r) {
  const int i = blockIdx.x, Tk = p.shape.Tk;
  const int g = h / (p.shape.H / p.shape.G);
  double* row = s + static_cast<std::int64_t>(i) * Tk;
  double* gradient = dp + static_cast<std::int64_t>(i) * Tk;
  double top = -INFINITY, sum = 0, delta = 0;
  for (int j = threadIdx.x; j < Tk; j += 256) top = fmax(top, row[j]);
  top = block_reduce(top, true);
  for (int j = threadIdx.x; j < Tk; j += 256) sum += top > -INFINITY ? exp(row[j] - top) : 0.0;
  sum = block_reduce(sum, false);
  const double lse = top > -INFINITY ? top + log(sum) : -INFINITY;
  const std::int64_t at = (static_cast<std::int64_t>(b) * p.shape.H + h) * p.shape.Tq + i;
  if (threadIdx.x == 0) r.lse[at] = lse;
  for (int j = threadIdx.x; j < Tk; j += 256) {
    const double x = lse > -INFINITY ? exp(row[j] - lse) : 0.0;
    row[j] = rounded ? round_bf16(x) : x;
  }
  __syncthreads();
  for (int c = 0; c < p.shape.Dv; ++c) {
    double o = 0;
    for (int j = threadIdx.x; j < Tk; j += 256) o += row[j] * p.v.at(b, j, g, c);
    o = block_reduce(o, false);
    if (rounded) o = round_bf16(o);
    if (threadIdx.x == 0) r.out[at * p.shape.Dv + c] = o;
    delta += o * p.d_out.at(b, i, h, c);
  }
  for (int j = threadIdx.x; j < Tk; j += 256) {
    const double x = row[j] * (gradient[j] - delta);
    gradient[j] = rounded ? round_bf16(x) : x;
  }
}

/// blockIdx.y a row, threadIdx.x a feature.
__global__ void reference_dq(Problem p, int b, int h, bool rounded, const double* ds, Results r) {
  const int i = blockIdx.x, c = threadIdx.x, g = h / (p.shape.H / p.shape.G);
  double sum = 0;
  for (int j = 0; j < p.shape.Tk; ++j) sum += ds[static_cast<std::int64_t>(i) * p.shape.Tk + j] * p.k.at(b, j, g, c);
  sum *= p.scale;
  const std::int64_t at = (static_cast<std::int64_t>(b) * p.shape.H + h) * p.shape.Tq + i;
  r.d_q[at * p.shape.Dqk + c] = rounded ? round_bf16(sum) : sum;
}

/// Adds the share of query head h to its group; the last head of a group rounds.
__global__ void reference_dkv(Problem p, int b, int h, bool rounded, const double* probability, const double* ds,
                              Results r) {
  const int j = blockIdx.x, c = threadIdx.x, ratio = p.shape.H / p.shape.G, g = h / ratio;
  double k = 0, v = 0;
  for (int i = 0; i < p.shape.Tq; ++i) {
    const std::int64_t at = static_cast<std::int64_t>(i) * p.shape.Tk + j;
    if (c < p.shape.Dqk) k += ds[at] * p.q.at(b, i, h, c);
    if (c < p.shape.Dv) v += probability[at] * p.d_out.at(b, i, h, c);
  }
  const std::int64_t row = (static_cast<std::int64_t>(b) * p.shape.G + g) * p.shape.Tk + j;
  const bool first = h % ratio == 0, last = h % ratio == ratio - 1;
  if (c < p.shape.Dqk) {
    double& x = r.d_k[row * p.shape.Dqk + c];
    x = (first ? 0.0 : x) + k * p.scale;
    if (last && rounded) x = round_bf16(x);
  }
  if (c < p.shape.Dv) {
    double& x = r.d_v[row * p.shape.Dv + c];
    x = (first ? 0.0 : x) + v;
    if (last && rounded) x = round_bf16(x);
  }
}

/// s, dp: scratch of Tq * Tk doubles each.
inline void reference(const Problem& p, bool rounded, const Results& r, double* s, double* dp) {
  const int width = p.shape.Dqk > p.shape.Dv ? p.shape.Dqk : p.shape.Dv;
  for (int b = 0; b < p.shape.B; ++b)
    for (int h = 0; h < p.shape.H; ++h) {
      reference_products<<<dim3((p.shape.Tk + 127) / 128, p.shape.Tq), 128>>>(p, b, h, rounded, s, dp);
      reference_rows<<<p.shape.Tq, 256>>>(p, b, h, rounded, s, dp, r);
      reference_dq<<<p.shape.Tq, p.shape.Dqk>>>(p, b, h, rounded, dp, r);
      reference_dkv<<<p.shape.Tk, width>>>(p, b, h, rounded, s, dp, r);
    }
}

/// The same by four nested loops on the host, for one tiny case: the oracle's own check.
inline void reference_on_host(const Problem& p, const Results& r) {
  const Shape& n = p.shape;
  const int ratio = n.H / n.G;
  for (int i = 0; i < n.B * n.G * n.Tk * n.Dqk; ++i) r.d_k[i] = 0;
  for (int i = 0; i < n.B * n.G * n.Tk * n.Dv; ++i) r.d_v[i] = 0;
  for (int b = 0; b < n.B; ++b)
    for (int h = 0; h < n.H; ++h)
      for (int i = 0; i < n.Tq; ++i) {
        const int g = h / ratio, row = (b * n.H + h) * n.Tq + i;
        double sum = 0, delta = 0;
        auto score = [&](int j) {
          double x = 0;
          for (int c = 0; c < n.Dqk; ++c) x += p.q.at(b, i, h, c) * p.k.at(b, j, g, c);
          return x * p.scale;
        };
        for (int j = 0; j < n.Tk; ++j)
          if (visible(p, b, i, j)) sum += std::exp(score(j));
        r.lse[row] = std::log(sum);
        for (int c = 0; c < n.Dv; ++c) {
          double o = 0;
          for (int j = 0; j < n.Tk; ++j)
            if (visible(p, b, i, j)) o += std::exp(score(j)) / sum * p.v.at(b, j, g, c);
          r.out[row * n.Dv + c] = o;
          delta += o * p.d_out.at(b, i, h, c);
        }
        for (int c = 0; c < n.Dqk; ++c) r.d_q[row * n.Dqk + c] = 0;
        for (int j = 0; j < n.Tk; ++j) {
          if (!visible(p, b, i, j)) continue;
          const double probability = std::exp(score(j)) / sum;
          double gradient = 0;
          for (int c = 0; c < n.Dv; ++c) gradient += p.d_out.at(b, i, h, c) * p.v.at(b, j, g, c);
          const double ds = probability * (gradient - delta);
          const int key = (b * n.G + g) * n.Tk + j;
          for (int c = 0; c < n.Dqk; ++c) {
            r.d_q[row * n.Dqk + c] += p.scale * ds * p.k.at(b, j, g, c);
            r.d_k[key * n.Dqk + c] += p.scale * ds * p.q.at(b, i, h, c);
          }
          for (int c = 0; c < n.Dv; ++c) r.d_v[key * n.Dv + c] += probability * p.d_out.at(b, i, h, c);
        }
      }
}

}  // namespace sfa::test
