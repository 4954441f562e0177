// Whole pairs chosen by their norms, eight of them a lane: a lane sorts the bits of its norms by a network, lanes of a
// row merge theirs, and the last one wanted is the threshold; of pairs that equal it the lowest fill up. More than
// eight pairs are counted instead: the threshold grows bit by bit while at least so many norms reach it.
#pragma once

#include "ops/select/sort_network.cuh"

namespace sfa::cuda_ops {

inline constexpr int kPairsOfLane = 8;
inline constexpr int kMaxSortedPairs = 8;  // chosen of a row

/// Orders pairs by their norm, NaN above infinity.
__device__ __forceinline__ std::uint32_t norm_bits(float low, float high) {
  const float norm = __fmaf_rn(low, low, __fmul_rn(high, high));
  return isnan(norm) ? 0x7fc00000u : __float_as_uint(norm);
}

/// The sum of `own` over the lanes of a row that come before this one.
template <int LANES>
__device__ __forceinline__ int before(int own, int place_in_row) {
  int sum = own;
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, sum, step, LANES);
    if (place_in_row >= step) sum += other;
  }
  return sum - own;
}

/// Bit e: pair e of this lane is above the threshold, or is one of the first `left` of the row that equal it.
template <int LANES>
__device__ __forceinline__ unsigned pairs_from(const std::uint32_t (&key)[kPairsOfLane], std::uint32_t threshold,
                                               int left, int place_in_row) {
  unsigned above = 0, equal = 0;
#pragma unroll
  for (int e = 0; e < kPairsOfLane; ++e) {
    above |= key[e] > threshold ? 1u << e : 0u;
    equal |= key[e] == threshold ? 1u << e : 0u;
  }
  const int allowed = max(0, left - before<LANES>(__popc(equal), place_in_row));
  while (__popc(equal) > allowed) equal &= ~(0x80000000u >> __clz(static_cast<int>(equal)));
  return above | equal;
}

/// Bit e: pair e of this lane is chosen. pairs <= kMaxSortedPairs.
template <int LANES>
__device__ __forceinline__ unsigned choose_pairs(const std::uint32_t (&key)[kPairsOfLane], int pairs,
                                                 int place_in_row) {
  std::uint32_t top[kMaxSortedPairs];
#pragma unroll
  for (int e = 0; e < kPairsOfLane; ++e) top[e] = key[e];
  sort_4(top);
  sort_4(top + 4);
  merge_4_4(top);
  merge_lanes<LANES>(top);
  std::uint32_t threshold = top[0];
#pragma unroll
  for (int i = 1; i < kMaxSortedPairs; ++i)
    if (i < pairs) threshold = top[i];
  int left = pairs;  // places for pairs that equal the threshold
#pragma unroll
  for (int i = 0; i < kMaxSortedPairs; ++i)
    if (i < pairs && top[i] > threshold) --left;
  return pairs_from<LANES>(key, threshold, left, place_in_row);
}

/// The same for any number of pairs.
template <int LANES>
__device__ __forceinline__ unsigned choose_pairs_by_counting(const std::uint32_t (&key)[kPairsOfLane], int pairs,
                                                             int place_in_row) {
  const auto reaching = [&](std::uint32_t threshold) {
    int count = 0;
#pragma unroll
    for (int e = 0; e < kPairsOfLane; ++e) count += key[e] >= threshold ? 1 : 0;
    return warp_sum<LANES>(count);
  };
  std::uint32_t threshold = 0;
#pragma unroll 1
  for (std::uint32_t bit = 0x40000000u; bit != 0; bit /= 2)
    if (reaching(threshold | bit) >= pairs) threshold |= bit;
  return pairs_from<LANES>(key, threshold, pairs - reaching(threshold + 1), place_in_row);
}

}  // namespace sfa::cuda_ops
