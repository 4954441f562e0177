// How the outputs of a warp of rotate_select.cu lie in memory, and their way there from shared memory.
#pragma once

#include "attention/flash/rotate_select.h"
#include "attention/flash/select_segment.cuh"

namespace sfa::flash {

/// A warp's tokens by four heads. Tiles are numbered so that 16 neighbouring tokens make kTiles of them: a tile has
/// tokens r .. r + kTokens / 2 - 1 and those eight behind.
template <int kD>
struct RotateSelectTile {
  static constexpr int kHeadLanes = kD / 16;  // lanes a head, of eight pairs each
  static constexpr int kTokens = 32 / kHeadLanes, kHeads = 4, kTiles = 16 / kTokens;
  static constexpr int kThreads = 2 * kTokens;  // of a warpgroup, those that the tile's compressed rows feed
  static constexpr int kSteps = kD / 32;        // of the sparse product
  static constexpr int kHeadPieces = kSteps * kThreads, kHeadMeta = (kSteps + 1) / 2 * kThreads;  // metadata in words
  static constexpr int kCompressedBytes = kHeads * (kHeadPieces * 16 + kHeadMeta * 4);
  static_assert(kHeadPieces == 32 && kHeadMeta == 16);

  /// The first token of a tile, and the others.
  static __device__ __forceinline__ int first_of(unsigned tile) {
    return static_cast<int>(tile / kTiles * 16 + tile % kTiles * (kTokens / 2));
  }
  static __device__ __forceinline__ int time_of(int first, int token) {
    return first + token % (kTokens / 2) + token / (kTokens / 2) * 8;
  }

  /// A head's part of the compressed operand: rows are numbered token by token, head by head. 16-byte pieces change
  /// places by their head, so that heads do not meet in a bank.
  struct Layout {
    static __device__ __forceinline__ int thread_of(int row, int q) { return row / kHeads % (kTokens / 2) * 4 + q; }
    static __device__ __forceinline__ int behind(int row) { return row / kHeads / (kTokens / 2); }
    static __device__ __forceinline__ int value_word(int row, int sub, int group) {
      const int head = row % kHeads, piece = head * kHeadPieces + sub / 2 * kThreads + thread_of(row, group);
      return (piece ^ head) * 4 + sub % 2 * 2 + behind(row);
    }
    /// In units of 16 bits.
    static __device__ __forceinline__ int meta_half(int row, int sub) {
      const int word = row % kHeads * kHeadMeta + sub / 4 * kThreads + thread_of(row, sub % 4);
      return (kHeads * kHeadPieces * 4 + word) * 2 + behind(row);
    }
  };

  template <class Chosen>
  static __device__ __forceinline__ void stage_compressed(unsigned* staging, const unsigned* pairs,
                                                          const Chosen& chosen, int row, int part) {
    chosen.template stage_compressed<Layout>(staging, pairs, row, part);
  }

  int lane, batch, first, T;

  /// Blocks of 64 tokens are whole: rows past the last token are stored as zeros.
  __device__ __forceinline__ void store_compressed(const RotatedHeads& of, int head0, int heads,
                                                   const uint4* staged) const {
    constexpr int kPieces = compressed_block_bytes(kD) / 16;
    const int blocks = (T + 63) / 64, number = first / 64;
    if (number >= blocks) return;
    const unsigned row = static_cast<unsigned>(first) % 64;
    const int thread = static_cast<int>(row / 16 * 32 + row % 8 * 4);  // of the warpgroup, the tile's first
    auto* block = static_cast<uint4*>(of.compressed) +
                  ((static_cast<std::int64_t>(batch) * of.heads + head0) * blocks + number) * kPieces;
    const std::int64_t head_stride = static_cast<std::int64_t>(blocks) * kPieces;
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
      if (h < heads)
        block[h * head_stride + lane / kThreads * 128 + thread + lane % kThreads] =
            staged[h * kHeadPieces + (lane ^ h)];
    const int h = lane / 4, word = lane % 4 * 4;  // four pieces of metadata a head
    if (h < kHeads && h < heads)
      block[h * head_stride + kSteps * 128 + (word / kThreads * 128 + thread + word % kThreads) / 4] =
          staged[kHeads * kHeadPieces + lane];
  }

  /// to: the group's first head in the first row.
  __device__ __forceinline__ void store_rows(unsigned short* to, int row, int heads, const uint4* segments) const {
    constexpr int kPieces = kHeads * kD / 8;  // a token
    constexpr int kCount = kTokens * kPieces / 32;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int f = i * 32 + lane, token = f / kPieces, piece = f % kPieces, time = time_of(first, token);
      if (time < T && piece < heads * (kD / 8))
        *reinterpret_cast<uint4*>(to + (static_cast<std::int64_t>(batch) * T + time) * row + piece * 8) =
            segments[piece_at(f / 8, f % 8)];
    }
  }

  __device__ __forceinline__ void store_support(const RotatedHeads& of, int head0, int heads,
                                                const unsigned short* values, const std::uint8_t* indices) const {
    const int k = of.k;
    const auto target = [&](int token) {
      return ((static_cast<std::int64_t>(batch) * T + time_of(first, token)) * of.heads + head0) * k;
    };
    if (k % 8 == 0) {
      const int pieces = k / 8, width = kHeads * pieces;
      for (int i = lane; i < kTokens * width; i += 32) {
        const int token = i / width, piece = i - token * width;
        if (piece >= heads * pieces || time_of(first, token) >= T) continue;
        const std::int64_t to = target(token) + piece * 8;
        *reinterpret_cast<uint4*>(static_cast<unsigned short*>(of.values) + to) =
            reinterpret_cast<const uint4*>(values)[i];
        *reinterpret_cast<uint2*>(of.indices + to) = reinterpret_cast<const uint2*>(indices)[i];
      }
      return;
    }
    const int width = kHeads * k;
    for (int i = lane; i < kTokens * width; i += 32) {
      const int token = i / width, element = i - token * width;
      if (element >= heads * k || time_of(first, token) >= T) continue;
      const std::int64_t to = target(token) + element;
      static_cast<unsigned short*>(of.values)[to] = values[i];
      of.indices[to] = indices[i];
    }
  }
};

}  // namespace sfa::flash
