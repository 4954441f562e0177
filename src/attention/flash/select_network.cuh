// The k-th largest magnitude of a row, and the support that follows from it, with two features in every instruction.
//
// A lane holds 64 neighbouring features of a row (a segment) as 32 words of two bf16 each; the D / 64 lanes of a row
// are neighbours in a warp. Magnitudes are 15-bit integers that order like |x|, NaN above infinity. Words are two lists
// side by side, one of the low halves and one of the high halves, and every step of a sorting network treats both at
// once:
//   1. groups of kKeep words are sorted (Batcher's odd-even network); of two descending lists the kKeep largest are
//      max(a[i], b[kKeep - 1 - i]), a bitonic list that log2(kKeep) steps sort again; so on until one list is left
//   2. the same with the lanes of a row, by shuffles
//   3. the k largest of the low and the high list together are max(low[i], high[k - 1 - i]); their minimum is the k-th
// Two lanes that want kKeep features join their own low and high list first and sort what is left, half as many words:
// then step 3 stands between the lanes. Under the 2-of-4 rule the two best of every four go in, as sorted pairs.
// More than 16 features are counted instead: the threshold grows bit by bit while at least k magnitudes reach it.
//
// Comparisons come as sign bits: (m | 0x8000) - t has bit 15 set exactly when m >= t, for both halves in one
// subtraction.
#pragma once

#include <cstdint>

namespace sfa::flash {

inline constexpr int kSegment = 64;  // features a lane
inline constexpr int kSegmentWords = kSegment / 2;
inline constexpr unsigned kBothSigns = 0x80008000u;

/// One bit a feature of a segment.
struct Mask {
  unsigned low = 0, high = 0;  // features 0..31, 32..63

  __device__ __forceinline__ int count() const { return __popc(low) + __popc(high); }
  __device__ __forceinline__ Mask operator&(const Mask& o) const { return {low & o.low, high & o.high}; }
  __device__ __forceinline__ Mask operator|(const Mask& o) const { return {low | o.low, high | o.high}; }
  __device__ __forceinline__ Mask operator~() const { return {~low, ~high}; }
};

/// Bytes of the pair (a: 0..3, b: 4..7) by selector digits; 8 + i repeats the sign of byte i, which __byte_perm can't.
__device__ __forceinline__ unsigned permute(unsigned a, unsigned b, unsigned selector) {
  unsigned result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
}

__device__ __forceinline__ unsigned swap_halves(unsigned x) {
  return permute(x, x, 0x1032);
}

/// Both halves: the larger to `a`, the smaller to `b`.
__device__ __forceinline__ void order(unsigned& a, unsigned& b) {
  const unsigned larger = __vmaxu2(a, b);
  b = __vminu2(a, b);
  a = larger;
}

/// Every kStride-th of N words: two descending lists, taken in turns, become one (Batcher's odd-even merge).
template <int N, int kStride>
__device__ __forceinline__ void merge_odd_even(unsigned* a) {
  if constexpr (2 * kStride < N) {
    merge_odd_even<N, 2 * kStride>(a);
    merge_odd_even<N, 2 * kStride>(a + kStride);
#pragma unroll
    for (int i = kStride; i + kStride < N; i += 2 * kStride) order(a[i], a[i + kStride]);
  } else {
    order(a[0], a[kStride]);
  }
}

/// N words; every kSorted neighbours of them are sorted already.
template <int N, int kSorted>
__device__ __forceinline__ void sort_descending(unsigned* a) {
  if constexpr (N > kSorted) {
    sort_descending<N / 2, kSorted>(a);
    sort_descending<N / 2, kSorted>(a + N / 2);
    merge_odd_even<N, 1>(a);
  }
}

template <int N>
__device__ __forceinline__ void sort_bitonic(unsigned* a) {
#pragma unroll
  for (int step = N / 2; step > 0; step /= 2)
#pragma unroll
    for (int i = 0; i < N; ++i)
      if ((i & step) == 0) order(a[i], a[i + step]);
}

/// The two best of every four neighbours: words 4 i .. 4 i + 3 hold two groups of four, and become word 2 i, the best
/// of either, and word 2 i + 1, the second.
__device__ __forceinline__ void best_of_four(unsigned (&m)[kSegmentWords]) {
#pragma unroll
  for (int i = 0; i < kSegmentWords / 4; ++i) {
    const unsigned* group = m + 4 * i;
    const unsigned larger[2] = {__vmaxu2(group[0], group[1]), __vmaxu2(group[2], group[3])},
                   smaller[2] = {__vminu2(group[0], group[1]), __vminu2(group[2], group[3])};
    const unsigned a = permute(larger[0], larger[1], 0x5410), b = permute(larger[0], larger[1], 0x7632),
                   c = permute(smaller[0], smaller[1], 0x5410), d = permute(smaller[0], smaller[1], 0x7632);
    m[2 * i] = __vmaxu2(a, b);
    m[2 * i + 1] = __vmaxu2(__vminu2(a, b), __vmaxu2(c, d));
  }
}

/// The k-th of two neighbouring lanes, of which each holds its k largest low halves and its k largest high ones.
template <int k>
__device__ __forceinline__ unsigned kth_of_two_lanes(const unsigned (&m)[kSegmentWords]) {
  constexpr int kHalf = k / 2;
  unsigned best[kHalf], e[kHalf];  // the lane's k best, bitonic: 0, 1, .. in low halves, k - 1, k - 2, .. in high ones
#pragma unroll
  for (int i = 0; i < kHalf; ++i) best[i] = __vmaxu2(m[i], swap_halves(m[k - 1 - i]));
    // The step that orders i and i + k/2; the larger ones go on as a list of low halves, the smaller ones of high
    // halves.
#pragma unroll
  for (int i = 0; i < kHalf / 2; ++i) {
    const unsigned opposite = swap_halves(best[kHalf - 1 - i]);
    const unsigned larger = __vmaxu2(best[i], opposite), smaller = __vminu2(best[i], opposite);
    e[i] = permute(larger, smaller, 0x5410);
    e[kHalf - 1 - i] = permute(larger, smaller, 0x7632);
  }
  sort_bitonic<kHalf>(e);
  unsigned least = 0xffffffffu;
#pragma unroll
  for (int i = 0; i < kHalf; ++i)
    least = __vminu2(least, __vmaxu2(e[i], swap_halves(__shfl_xor_sync(0xffffffffu, e[kHalf - 1 - i], 1))));
  return __vminu2(least, swap_halves(least));
}

/// The k-th largest magnitude of the row, under the 2-of-4 rule of those that it leaves, in both halves of the word.
/// m: magnitudes of this lane, destroyed. k <= kKeep.
template <int kKeep, int kLanes, bool k2of4>
__device__ __forceinline__ unsigned kth_by_network(unsigned (&m)[kSegmentWords], int k) {
  constexpr int kWords = k2of4 ? kSegmentWords / 2 : kSegmentWords;
  if constexpr (k2of4) best_of_four(m);
#pragma unroll
  for (int group = 0; group < kWords; group += kKeep) sort_descending<kKeep, k2of4 ? 2 : 1>(m + group);
#pragma unroll
  for (int width = kKeep; width < kWords; width *= 2)
#pragma unroll
    for (int at = 0; at < kWords; at += 2 * width) {
#pragma unroll
      for (int i = 0; i < kKeep; ++i) m[at + i] = __vmaxu2(m[at + i], m[at + width + kKeep - 1 - i]);
      sort_bitonic<kKeep>(m + at);
    }
  if constexpr (kLanes == 2)
    if (k == kKeep) return kth_of_two_lanes<kKeep>(m);
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    unsigned other[kKeep];
#pragma unroll
    for (int i = 0; i < kKeep; ++i) other[i] = __shfl_xor_sync(0xffffffffu, m[kKeep - 1 - i], step);
#pragma unroll
    for (int i = 0; i < kKeep; ++i) m[i] = __vmaxu2(m[i], other[i]);
    sort_bitonic<kKeep>(m);
  }
  unsigned least = 0xffffffffu;
  if (k == kKeep) {
#pragma unroll
    for (int i = 0; i < kKeep / 2; ++i) least = __vminu2(least, __vmaxu2(m[i], swap_halves(m[kKeep - 1 - i])));
    return __vminu2(least, swap_halves(least));
  }
  unsigned opposite[kKeep];  // [i] becomes the other half's [k - 1 - i]; 0xffff where i >= k
#pragma unroll
  for (int i = 0; i < kKeep; ++i) opposite[i] = swap_halves(m[kKeep - 1 - i]);
#pragma unroll
  for (int step = kKeep / 2; step > 0; step /= 2)
    if ((kKeep - k) & step) {
#pragma unroll
      for (int i = 0; i < kKeep; ++i) opposite[i] = i + step < kKeep ? opposite[(i + step) % kKeep] : 0xffffffffu;
    }
#pragma unroll
  for (int i = 0; i < kKeep; ++i) least = __vminu2(least, __vmaxu2(m[i], opposite[i]));
  return __vminu2(least, swap_halves(least));
}

/// Features whose magnitude is not below the threshold (in both halves of `t`). x: the words as stored.
__device__ __forceinline__ Mask not_below(const unsigned (&x)[kSegmentWords], unsigned t) {
  unsigned part[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    unsigned two[2];  // bytes 0 and 2: even features of eight, bytes 1 and 3: odd ones
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      unsigned bits = 0;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int at = 16 * half + 8 * pair + s;
        const unsigned signs = permute((x[at] | kBothSigns) - t, (x[at + 4] | kBothSigns) - t, 0xfdb9);
        bits |= signs & 0x02010201u << 2 * s;
      }
      two[pair] = bits | bits >> 8;
    }
    part[half] = permute(two[0], two[1], 0x6420);
  }
  return {part[0], part[1]};
}

template <int kLanes>
__device__ __forceinline__ int sum_of_row(int x) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
/// Sum over the lanes of the row below this one.
template <int kLanes>
__device__ __forceinline__ int sum_below(int x, int lane) {
  int sum = x;
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, step, kLanes);
    if (lane >= step) sum += other;
  }
  return sum - x;
}

/// The k-th largest magnitude among the candidates by counting, in both halves of the word; 0 when only zeros are left.
template <int kLanes>
__device__ __forceinline__ unsigned kth_by_counting(const unsigned (&x)[kSegmentWords], const Mask& candidates, int k) {
  unsigned t = 0;
#pragma unroll 1
  for (unsigned bit = 0x4000u; bit != 0; bit /= 2) {
    const unsigned trial = t | bit * 0x10001u;
    if (sum_of_row<kLanes>((not_below(x, trial) & candidates).count()) >= k) t = trial;
  }
  return t;
}

/// The two best of each group of four neighbours, ties to the lower index. m: magnitudes.
__device__ __forceinline__ Mask two_of_four(const unsigned (&m)[kSegmentWords]) {
  unsigned part[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    unsigned two[2];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      unsigned bits = 0;
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        unsigned keep[2][2];  // [group, group + 2][word], sign bits
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 16 * half + 8 * pair + 4 * i + 2 * group;
          // a = (x0, x1), b = (x2, x3); a feature stays when it beats two of the other three
          const unsigned a = m[at], b = m[at + 1], as = a | kBothSigns, bs = b | kBothSigns, b_swapped = swap_halves(b);
          const unsigned straight = as - b;                          // x0 >= x2, x1 >= x3
          const unsigned crossed = as - b_swapped;                   // x0 >= x3, x1 >= x2
          const unsigned within_a = as - swap_halves(a) - 0x10000u;  // x0 >= x1, x1 > x0
          const unsigned within_b = bs - b_swapped - 0x10000u;       // x2 >= x3, x3 > x2
          const unsigned uncrossed = swap_halves(crossed);           // x1 >= x2, x0 >= x3
          keep[i][0] = (straight & crossed) | (within_a & (straight | crossed));
          keep[i][1] = (~straight & ~uncrossed) | (within_b & (~straight | ~uncrossed));
        }
        bits |= permute(keep[0][0], keep[1][0], 0xfdb9) & 0x02010201u << 4 * group;
        bits |= permute(keep[0][1], keep[1][1], 0xfdb9) & 0x02010201u << (4 * group + 2);
      }
      two[pair] = bits | bits >> 8;
    }
    part[half] = permute(two[0], two[1], 0x6420);
  }
  return {part[0], part[1]};
}

/// x with the features outside the mask zeroed.
__device__ __forceinline__ void zero_outside(unsigned (&x)[kSegmentWords], const Mask& mask) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const unsigned bits = half == 0 ? mask.low : mask.high;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const unsigned even = bits << (7 - 2 * s), odd = bits << (6 - 2 * s);  // the bit of each byte's word s on top
#pragma unroll
      for (int byte = 0; byte < 4; ++byte) x[16 * half + 4 * byte + s] &= permute(even, odd, 0xcc88 + 0x1111 * byte);
    }
  }
}

/// Of the candidates the k of largest magnitude, ties to the lowest index, given the k-th largest magnitude.
template <int kLanes>
__device__ __forceinline__ Mask support_from(const unsigned (&x)[kSegmentWords], const Mask& candidates, unsigned kth,
                                             int k, int lane) {
  const Mask above = not_below(x, kth + 0x10001u) & candidates;
  Mask chosen = not_below(x, kth) & candidates;
  const int equal = chosen.count() - above.count();
  const int room = k - sum_of_row<kLanes>(above.count()) - sum_below<kLanes>(equal, lane);
  Mask surplus = chosen & ~above;  // those equal to the k-th: all but the lowest `room` go
#pragma unroll 1
  for (int drop = equal - max(room, 0); drop > 0; --drop) {
    if (surplus.high != 0) {
      const unsigned bit = 0x80000000u >> __clz(surplus.high);
      surplus.high ^= bit;
      chosen.high ^= bit;
    } else {
      const unsigned bit = 0x80000000u >> __clz(surplus.low);
      surplus.low ^= bit;
      chosen.low ^= bit;
    }
  }
  return chosen;
}

}  // namespace sfa::flash
