// A lane's segment of 64 features of a row in shared memory: reading it, choosing its part of the row's support, and
// staging what follows from that. Segments are numbered as they lie; lanes of a row are neighbours in a warp.
#pragma once

#include "attention/flash/select_network.cuh"

namespace sfa::flash {

/// 16-byte piece `piece` of segment `segment`: eight neighbouring lanes reading the same piece of theirs meet no bank
/// twice.
__device__ __forceinline__ int piece_at(int segment, int piece) {
  return segment * 8 + (piece ^ (segment & 7));
}

/// For the four bits of a group's two stored features: which bytes of the group are theirs (16 bits), and the metadata.
__device__ __forceinline__ unsigned stored_pair(unsigned kept) {
  const unsigned first = kept & 1u ? 0u : kept & 2u ? 1u : 2u, second = kept & 8u ? 3u : kept & 4u ? 2u : 1u;
  return (0x10u + 0x22u * first) | (0x10u + 0x22u * second) << 8 | (first | second << 2) << 16;
}

template <int kLanes>
struct Chosen {
  unsigned x[kSegmentWords];  // as stored
  Mask kept;                  // under the 2-of-4 rule: the two of every four that are stored
  Mask support;

  static __device__ __forceinline__ void read(unsigned (&to)[kSegmentWords], const uint4* segments, int segment) {
#pragma unroll
    for (int piece = 0; piece < 8; ++piece) {
      const uint4 v = segments[piece_at(segment, piece)];
      to[4 * piece] = v.x, to[4 * piece + 1] = v.y, to[4 * piece + 2] = v.z, to[4 * piece + 3] = v.w;
    }
  }

  /// kKeep: 0, or no less than k. The row is read again behind the network, which needs the registers.
  template <bool k2of4, int kKeep>
  __device__ __forceinline__ void choose(const uint4* segments, int segment, int k, int lane) {
    kept = {0xffffffffu, 0xffffffffu};
    unsigned kth = 0;
    if constexpr (k2of4 || kKeep > 0) {
      unsigned m[kSegmentWords];
      read(m, segments, segment);
#pragma unroll
      for (int i = 0; i < kSegmentWords; ++i) m[i] &= ~kBothSigns;
      if constexpr (k2of4) kept = two_of_four(m);
      if constexpr (kKeep > 0) kth = kth_by_network<kKeep, kLanes, k2of4>(m, k);
      asm volatile("" ::: "memory");
    }
    read(x, segments, segment);
    if constexpr (kKeep == 0) kth = kth_by_counting<kLanes>(x, kept, k);
    support = support_from<kLanes>(x, kept, kth, k, lane);
  }

  /// values, indices: the row's.
  __device__ __forceinline__ void stage_support(const uint4* segments, int segment, unsigned short* values,
                                                std::uint8_t* indices, int lane) const {
    const int at = sum_below<kLanes>(support.count(), lane);
    unsigned short* value = values + at;
    std::uint8_t* index = indices + at;
    const auto* own = reinterpret_cast<const unsigned short*>(segments);
    unsigned bits = support.low;
    int base = 0;
#pragma unroll 1
    while (true) {
      for (; bits != 0; bits &= bits - 1) {
        const int feature = base + __ffs(bits) - 1;
        *value++ = own[piece_at(segment, feature / 8) * 8 + feature % 8];
        *index++ = static_cast<std::uint8_t>(lane * kSegment + feature);
      }
      if (base != 0) break;
      base = 32;
      bits = support.high;
    }
  }

  __device__ __forceinline__ void zero_rest() {
    zero_outside(x, support);
  }

  /// After zero_rest(). Layout says where row `row` puts the value words and the metadata of its features 16 sub .. 16
  /// sub + 15; pairs: stored_pair() of 0 .. 15.
  template <class Layout>
  __device__ __forceinline__ void stage_compressed(unsigned* staging, const unsigned* pairs, int row, int lane) const {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const unsigned bits = (part < 2 ? kept.low : kept.high) >> 16 * (part % 2);
      const int sub = 4 * lane + part;
      unsigned nibbles = 0;
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        const unsigned pair = pairs[bits >> 4 * g & 15u];
        staging[Layout::value_word(row, sub, g)] = permute(x[8 * part + 2 * g], x[8 * part + 2 * g + 1], pair);
        nibbles |= (pair >> 16) << 4 * g;
      }
      reinterpret_cast<unsigned short*>(staging)[Layout::meta_half(row, sub)] = static_cast<unsigned short>(nibbles);
    }
  }

  __device__ __forceinline__ void write(uint4* segments, int segment) const {
#pragma unroll
    for (int piece = 0; piece < 8; ++piece)
      segments[piece_at(segment, piece)] = {x[4 * piece], x[4 * piece + 1], x[4 * piece + 2], x[4 * piece + 3]};
  }
};

}  // namespace sfa::flash
