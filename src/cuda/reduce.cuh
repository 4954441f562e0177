// Sums and maxima over a warp or a block, in a fixed order: the same bits every run.
#pragma once

#include <cuda_runtime.h>

namespace sfa {

inline constexpr unsigned kAllLanes = 0xffffffffu;

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/// Reduces over aligned groups of WIDTH lanes; every lane gets the result.
template <int WIDTH = 32, class T, class Op>
__device__ __forceinline__ T warp_reduce(T x, Op op) {
#pragma unroll
  for (int step = WIDTH / 2; step > 0; step /= 2) x = op(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
template <int WIDTH = 32, class T>
__device__ __forceinline__ T warp_sum(T x) {
  return warp_reduce<WIDTH>(x, Sum{});
}

/// Reduces over a block of THREADS (a multiple of 32) threads that all take part; every thread gets the result. Safe to
/// call repeatedly.
template <int THREADS, class T, class Op>
__device__ __forceinline__ T block_reduce(T x, Op op) {
  constexpr int kWarps = THREADS / 32;
  static_assert(THREADS % 32 == 0 && kWarps <= 32);
  __shared__ T parts[kWarps];
  x = warp_reduce(x, op);
  if constexpr (kWarps == 1) return x;
  __syncthreads();  // the readers of an earlier call are done with `parts`
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  T total = parts[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) total = op(total, parts[w]);
  return total;
}
template <int THREADS, class T>
__device__ __forceinline__ T block_sum(T x) {
  return block_reduce<THREADS>(x, Sum{});
}

/// Sum over the GROUP threads that share a row: a warp, or the whole block.
template <int GROUP, class T>
__device__ __forceinline__ T group_sum(T x) {
  if constexpr (GROUP <= 32)
    return warp_sum<GROUP>(x);
  else
    return block_sum<GROUP>(x);
}

}  // namespace sfa
