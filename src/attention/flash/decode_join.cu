// Second pass of decoding: the partial results of a query row, joined in the order of the parts.
//   m = max_i m_i;  w_i = 2^(m_i - m);  out = sum_i w_i O_i / sum_i w_i l_i;  lse = ln 2 (m + log2 sum_i w_i l_i)
#include <cuda_bf16.h>

#include "attention/flash/decode_kernel.cuh"

namespace sfa::flash {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

/// A block a row; a warp takes every kWarps-th part.
__global__ void __launch_bounds__(kThreads) join_kernel(const __grid_constant__ DecodeArgs a) {
  __shared__ float sums[kWarps][256], totals[kWarps];
  const int index = blockIdx.x, row = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const DecodeUnit unit(a, index);
  if (row >= unit.rows) return;
  const Shape& shape = a.p.shape;
  const std::int64_t begin = std::int64_t{index} * a.split.tiles;
  int first = 0, last = -1;
  if (a.split.tiles > 0) {
    first = a.split.part_of(begin);
    last = a.split.part_of(begin + a.split.tiles - 1);
  }
  const auto at = [&](int part) { return (std::int64_t{part} + index) * a.unit_rows() + row; };
  float top = kNoMaximum;
  for (int part = first + lane; part <= last; part += 32) top = fmaxf(top, a.partial_stats[at(part)].x);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));

  float sum[8] = {}, total = 0;
#pragma unroll 4
  for (int part = first + warp; part <= last; part += kWarps) {
    const float2 stats = a.partial_stats[at(part)];
    const float weight = exp2_mufu(stats.x - top);
    total += weight * stats.y;
    const float* from = a.partial_out + at(part) * shape.Dv;
#pragma unroll
    for (int c = 0; c < 8; ++c)
      if (lane + 32 * c < shape.Dv) sum[c] += weight * from[lane + 32 * c];
  }
#pragma unroll
  for (int c = 0; c < 8; ++c) sums[warp][lane + 32 * c] = sum[c];
  if (lane == 0) totals[warp] = total;
  __syncthreads();
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += totals[w];
  const int token = unit.token(a, row), head = unit.head(a, row);
  auto* out = static_cast<__nv_bfloat16*>(a.p.out) + unit.b * a.p.out_stride.batch + token * a.p.out_stride.token +
              head * a.p.out_stride.head;
  const float inverse = total > 0 ? 1.0f / total : 0.0f;
  for (int c = threadIdx.x; c < shape.Dv; c += kThreads) {
    float joined = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) joined += sums[w][c];
    out[c] = __float2bfloat16_rn(joined * inverse);
  }
  if (threadIdx.x == 0)
    a.p.lse[(std::int64_t{unit.b} * shape.H + head) * shape.Tq + token] =
        total > 0 ? 0.6931471805599453f * (top + log2f(total)) : -INFINITY;
}

}  // namespace

cudaError_t decode_join(const DecodeArgs& args, cudaStream_t stream) {
  const dim3 grid(args.split.units, args.unit_rows());
  join_kernel<<<grid, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace sfa::flash
