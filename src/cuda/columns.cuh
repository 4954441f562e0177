// Sums over rows that come out the same every run: partial sums of fixed row ranges, then one fold in a fixed order.
#pragma once

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace sfa {

/// to[c] += sum over p of partials[p * stride + c], for c < columns. One block of (32, 8) threads a group of 32
/// columns.
template <class G>
__global__ void fold_partials_kernel(const float* __restrict__ partials, int count, std::int64_t stride, G* to,
                                     std::int64_t columns) {
  __shared__ float part[8][33];
  const std::int64_t c = blockIdx.x * std::int64_t{32} + threadIdx.x;
  float sum = 0;
  if (c < columns)
    for (int p = static_cast<int>(threadIdx.y); p < count; p += 8) sum += partials[p * stride + c];
  part[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= columns) return;
#pragma unroll
  for (int y = 1; y < 8; ++y) sum += part[y][threadIdx.x];
  to[c] = from_float<G>(to_float(to[c]) + sum);
}

/// to [columns] (f32 or bf16) += the fold of `count` partial rows.
inline void fold_partials(CudaState& state, const float* partials, int count, std::int64_t stride, const Tensor& to,
                          std::int64_t columns) {
  for_float_type(to.dtype, "a sum over rows", [&]<class G>() {
    fold_partials_kernel<G>
        <<<blocks_for(columns, 32), dim3(32, 8), 0, state.stream>>>(partials, count, stride, data_of<G>(to), columns);
  });
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa
