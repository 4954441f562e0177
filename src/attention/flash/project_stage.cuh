// How a warp of the projection's selection leaves supports and the compressed operand (project_select_kernel.cuh).
#pragma once

#include <cstdint>

#include "attention/flash/select_segment.cuh"

namespace sfa::flash {

/// Where row `row` of kRows (16 or 32: the part of a block of compressed_block_bytes that a warp has at a time) puts
/// the value words and the metadata of its features 16 sub .. 16 sub + 15.
template <int kD, int kRows>
struct CompressedPart {
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

/// Takes the lowest feature out of a mask that is not empty.
__device__ __forceinline__ int take_lowest(Mask& mask) {
  const bool high = mask.low == 0;
  const unsigned bits = high ? mask.high : mask.low, rest = bits & (bits - 1);
  mask.low = high ? 0 : rest;
  mask.high = high ? rest : mask.high;
  return __ffs(bits) - 1 + (high ? 32 : 0);
}

/// The support of a row of one lane, eight features at a time, to places in memory that are aligned to eight elements.
__device__ __forceinline__ void store_support(const uint4* segments, int segment, Mask support, int k,
                                              unsigned short* value, std::uint8_t* index) {
  const auto* own = reinterpret_cast<const unsigned short*>(segments);
  const auto feature = [&](int i) { return static_cast<unsigned>(own[piece_at(segment, i / 8) * 8 + i % 8]); };
#pragma unroll 1
  for (int done = 0; done < k; done += 8) {
    unsigned values[4], indices[2];
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      const int first = take_lowest(support), second = take_lowest(support);
      values[pair] = feature(first) | feature(second) << 16;
      const unsigned both = static_cast<unsigned>(first | second << 8);
      indices[pair / 2] = pair % 2 == 0 ? both : indices[pair / 2] | both << 16;
    }
    *reinterpret_cast<uint4*>(value + done) = {values[0], values[1], values[2], values[3]};
    *reinterpret_cast<uint2*>(index + done) = {indices[0], indices[1]};
  }
}

}  // namespace sfa::flash
