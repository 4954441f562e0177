// Masks of gradients by the features that sparse rows keep, read off the rows themselves: the preparing kernel writes
// them so that a feature is kept if and only if its 16 bits are not zero (a kept zero is written as -0). The rows of Q
// and K lie in shared memory when their gradients are finished, and ldmatrix finds in them exactly what stmatrix is
// about to write. So a mask costs no read of global memory, and one word a panel of 64 x 64.
#pragma once

#include <cstdint>

#include "cuda/exp2.cuh"
#include "cuda/sm80_mma.cuh"
#include "cuda/sm90_store.cuh"

namespace sfa::flash {

/// Where this thread stands in its warpgroup's fragments, and the byte offset of the row it addresses for stmatrix.
struct FragmentPlace {
  int row;          // first row (key) of the fragment: 16 warp + lane / 4
  int column;       // first column: 2 (lane % 4)
  int matrix_row;   // row that this lane addresses in store_matrix_x4
  int matrix_flip;  // its 16-byte chunk within an even pair, swizzled: chunk = (2 pair) ^ matrix_flip

  __device__ __forceinline__ FragmentPlace() {
    const int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) & 3;
    row = warp * 16 + lane / 4;
    column = lane % 4 * 2;
    matrix_row = warp * 16 + (lane & 15);
    matrix_flip = (lane >> 4) ^ (lane & 7);
  }
  /// Of this lane's part of columns 16 pair .. 16 pair + 15 in a panel of 128-byte rows (128-byte swizzle).
  __device__ __forceinline__ std::uint32_t matrix_offset(int pair) const {
    return matrix_row * 128 + (((2 * pair) ^ matrix_flip) << 4);
  }
};

inline constexpr std::uint32_t kKeepAll = ~0u;

/// What this thread's 64 x 64 fragment keeps: bit 15 - i (31 - i) for the low (high) half of packed register i.
__device__ __forceinline__ std::uint32_t kept_features(std::uint32_t panel, const FragmentPlace& place) {
  std::uint32_t kept = 0;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    std::uint32_t x[4];
    sm80::load_matrices(x, panel + place.matrix_offset(pair));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t carried = ((x[i] & 0x7fff7fffu) + 0x7fff7fffu) | x[i];  // bit 15 of a half: it is not zero
      kept |= (carried & 0x80008000u) >> (4 * pair + i);
    }
  }
  return kept;
}

/// Packed register i of the fragment, zero where it keeps nothing.
__device__ __forceinline__ std::uint32_t keep_features(std::uint32_t packed, std::uint32_t kept, int i) {
  std::uint32_t mask;
  asm("prmt.b32 %0, %1, 0, 0xbb99;" : "=r"(mask) : "r"(kept << i));  // every half: its sign, 16 times
  return packed & mask;
}

/// 64 x 64 of a fragment, times scale, as bf16 into a panel of 128-byte rows (128-byte swizzle), masked.
__device__ __forceinline__ void store_panel(std::uint32_t panel, const float* d, float scale,
                                            const FragmentPlace& place, std::uint32_t kept) {
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    std::uint32_t x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* two = d + pair * 8 + 2 * i;
      x[i] = keep_features(pack_bf16(two[0] * scale, two[1] * scale), kept, 4 * pair + i);
    }
    sm90::store_matrix_x4(panel + place.matrix_offset(pair), x[0], x[1], x[2], x[3]);
  }
}

}  // namespace sfa::flash
