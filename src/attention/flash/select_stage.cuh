// What the kernels that select features share beside the networks: the rows in shared memory, the support from a row in
// registers, and the places of values, indices and the compressed operand before they leave.
#pragma once

#include <cstdint>

#include "attention/flash/select_network.cuh"

namespace sfa::flash {

inline constexpr int kMaxKeep = 16;  // features that a sorting network keeps

/// The 128 bytes of a lane's segment in shared memory. 16-byte pieces change places by `turn` (0..7), so that eight
/// neighbouring lanes of different turns reading the same piece of theirs meet no bank twice.
struct Segment {
  uint4* pieces;
  int turn;

  __device__ __forceinline__ uint4& piece(int i) const { return pieces[i ^ turn]; }
  __device__ __forceinline__ unsigned short feature(int i) const {
    return reinterpret_cast<const unsigned short*>(pieces)[((i / 8) ^ turn) * 8 + i % 8];
  }
  __device__ __forceinline__ void read(unsigned (&x)[kSegmentWords]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint4 v = piece(i);
      x[4 * i] = v.x, x[4 * i + 1] = v.y, x[4 * i + 2] = v.z, x[4 * i + 3] = v.w;
    }
  }
  __device__ __forceinline__ void write(const unsigned (&x)[kSegmentWords]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) piece(i) = {x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]};
  }
};

/// A lane's part of a row's support, and the features that the 2-of-4 rule leaves (all of them under `topk`).
struct Choice {
  Mask chosen, kept;
};

/// kKeep: features that the network keeps, k at the least; 0: by counting. kLanes neighbouring lanes own a row.
template <bool k2of4, int kKeep, int kLanes>
__device__ __forceinline__ Choice choose_features(const unsigned (&x)[kSegmentWords], int k, int lane) {
  Mask kept{0xffffffffu, 0xffffffffu};
  unsigned kth;
  {
    unsigned m[kSegmentWords];
#pragma unroll
    for (int i = 0; i < kSegmentWords; ++i) m[i] = x[i] & ~kBothSigns;
    if constexpr (k2of4) kept = keep_two_of_four(m);
    if constexpr (kKeep > 0)
      kth = kth_by_network<kKeep, kLanes>(m, k);
    else
      kth = kth_by_counting<kLanes>(x, kept, k);
  }
  return {support_from<kLanes>(x, kept, kth, k, lane), kept};
}

/// Takes the lowest feature out of a mask that is not empty.
__device__ __forceinline__ int take_lowest(Mask& mask) {
  const bool high = mask.low == 0;
  const unsigned bits = high ? mask.high : mask.low, rest = bits & (bits - 1);
  mask.low = high ? 0 : rest;
  mask.high = high ? rest : mask.high;
  return __ffs(bits) - 1 + (high ? 32 : 0);
}

/// Writes the chosen features of lane `lane` of a row, whose places begin at `value` and `index`.
__device__ __forceinline__ void stage_support(const Segment& own, Mask chosen, int lane, unsigned short* value,
                                              std::uint8_t* index) {
  const int count = chosen.count();
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const int feature = take_lowest(chosen);
    value[i] = own.feature(feature);
    index[i] = static_cast<std::uint8_t>(lane * kSegment + feature);
  }
}

/// The same for a row of one lane, eight features at a time, to places in memory that are aligned to eight elements.
__device__ __forceinline__ void store_support(const Segment& own, Mask chosen, int k, unsigned short* value,
                                              std::uint8_t* index) {
#pragma unroll 1
  for (int done = 0; done < k; done += 8) {
    unsigned values[4], indices[2];
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      const int first = take_lowest(chosen), second = take_lowest(chosen);
      values[pair] = own.feature(first) | static_cast<unsigned>(own.feature(second)) << 16;
      const unsigned both = static_cast<unsigned>(first | second << 8);
      indices[pair / 2] = pair % 2 == 0 ? both : indices[pair / 2] | both << 16;
    }
    *reinterpret_cast<uint4*>(value + done) = {values[0], values[1], values[2], values[3]};
    *reinterpret_cast<uint2*>(index + done) = {indices[0], indices[1]};
  }
}

/// Where row `row` of kRows (16, 32 or 64: the part of a block of compressed_block_bytes that is staged) puts the value
/// words and the metadata of its features 16 sub .. 16 sub + 15.
template <int kD, int kRows>
struct CompressedLayout {
  static constexpr int kThreads = 2 * kRows;  // of the warpgroup that reads the operand
  static constexpr int kValuePieces = kD / 32 * kThreads, kPieces = kValuePieces + kD / 64 * kThreads / 4;

  static __device__ __forceinline__ int thread_of(int row, int q) { return (row / 16) * 32 + (row % 8) * 4 + q; }
  /// 16-byte pieces change places so that rows do not meet in a bank; the copy to memory puts them back.
  static __device__ __forceinline__ int staged(int piece) { return piece ^ (piece >> 3 & 3); }
  static __device__ __forceinline__ int value_word(int row, int sub, int group) {
    return staged(sub / 2 * kThreads + thread_of(row, group)) * 4 + sub % 2 * 2 + row / 8 % 2;
  }
  /// In units of 16 bits.
  static __device__ __forceinline__ int meta_half(int row, int sub) {
    const int word = kValuePieces * 4 + sub / 4 * kThreads + thread_of(row, sub % 4);
    return (staged(word / 4) * 4 + word % 4) * 2 + row / 8 % 2;
  }
  /// The piece of the whole block that piece `piece` of the part beginning at row `first` is.
  static __device__ __forceinline__ int piece_of_block(int piece, int first) {
    const int meta = piece - kValuePieces;
    return meta < 0 ? piece / kThreads * 128 + first * 2 + piece % kThreads
                    : kD / 32 * 128 + meta / (kThreads / 4) * 32 + first / 2 + meta % (kThreads / 4);
  }
};

/// For the four bits of a group's two stored features: which bytes of the group are theirs (16 bits), and the metadata.
__device__ __forceinline__ unsigned stored_pair(unsigned kept) {
  const unsigned first = kept & 1u ? 0u : kept & 2u ? 1u : 2u, second = kept & 8u ? 3u : kept & 4u ? 2u : 1u;
  return (0x10u + 0x22u * first) | (0x10u + 0x22u * second) << 8 | (first | second << 2) << 16;
}

/// This lane's part of the compressed operand: `kept` says which two of four are stored; x is zero outside the support.
/// pairs: stored_pair of 0..15, in shared memory.
template <int kD, int kRows>
__device__ __forceinline__ void stage_compressed(unsigned* staging, const unsigned* pairs,
                                                 const unsigned (&x)[kSegmentWords], const Mask& kept, int row,
                                                 int lane) {
  using Layout = CompressedLayout<kD, kRows>;
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

}  // namespace sfa::flash
