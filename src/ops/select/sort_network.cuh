// Sorting networks for keys in registers; largest first.
#pragma once

#include <cstdint>

#include "cuda/reduce.cuh"

namespace sfa::cuda_ops {

__device__ __forceinline__ void order(std::uint32_t& larger, std::uint32_t& smaller) {
  const std::uint32_t a = larger, b = smaller;
  larger = max(a, b);
  smaller = min(a, b);
}

__device__ __forceinline__ void sort_4(std::uint32_t* a) {
  order(a[0], a[1]);
  order(a[2], a[3]);
  order(a[0], a[2]);
  order(a[1], a[3]);
  order(a[1], a[2]);
}

// Two descending lists of four become one of eight (Batcher's odd-even merge).
__device__ __forceinline__ void merge_4_4(std::uint32_t* a) {
#pragma unroll
  for (int i = 0; i < 4; ++i) order(a[i], a[i + 4]);
  order(a[2], a[4]);
  order(a[3], a[5]);
  order(a[1], a[2]);
  order(a[3], a[4]);
  order(a[5], a[6]);
}

// A bitonic list becomes descending.
template <int N>
__device__ __forceinline__ void sort_bitonic(std::uint32_t (&a)[N]) {
#pragma unroll
  for (int step = N / 2; step > 0; step /= 2)
#pragma unroll
    for (int i = 0; i < N; ++i)
      if ((i & step) == 0) order(a[i], a[i + step]);
}

/// Of the descending lists of LANES lanes, the N largest of all, descending, in every lane: of two such lists they are
/// max(a[i], b[N-1-i]), which is bitonic.
template <int LANES, int N>
__device__ __forceinline__ void merge_lanes(std::uint32_t (&top)[N]) {
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    std::uint32_t other[N];
#pragma unroll
    for (int i = 0; i < N; ++i) other[i] = __shfl_xor_sync(kAllLanes, top[N - 1 - i], step);
#pragma unroll
    for (int i = 0; i < N; ++i) top[i] = max(top[i], other[i]);
    sort_bitonic(top);
  }
}

}  // namespace sfa::cuda_ops
