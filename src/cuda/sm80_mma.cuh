// Wrappers for what every card from compute capability 8.0 on has: asynchronous copies to shared memory (cp.async),
// fragments by ldmatrix, products by mma.sync m16n8k16 and mma.sp m16n8k32 in bf16 with f32 sums; and the layout of
// tiles between them.
//
// Fragments of a warp, g = lane / 4, t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//   A 16 x 16   a[0]: row g, columns 2t 2t+1; a[1]: row g + 8; a[2], a[3]: the same, columns + 8
//   B 16 x 8    b0: rows 2t 2t+1, column g; b1: rows + 8
//   C 16 x 8    c[0], c[1]: row g, columns 2t 2t+1; c[2], c[3]: row g + 8
// so C of two neighbouring products, rounded and packed, is A of the next one.
#pragma once

#include <cstdint>

namespace sfa::sm80 {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// 16 bytes to shared memory past L1; zeros when !valid, and then nothing is read.
__device__ __forceinline__ void copy_async(std::uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most kPending groups of this thread are under way.
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_shared(std::uint32_t& x, std::uint32_t& y, std::uint32_t address) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(x), "=r"(y) : "r"(address) : "memory");
}
__device__ __forceinline__ void load_shared(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void store_shared(std::uint32_t address, const std::uint32_t (&r)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

/// c[0..3] += A B.
__device__ __forceinline__ void multiply_add(float* c, const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// c[0..3] += A B, A 16 x 32 of which two of four neighbouring columns are stored (sm80_sparse.h), B 32 x 8.
template <int kSelector>
__device__ __forceinline__ void sparse_multiply_add(float* c, const std::uint32_t (&a)[4], std::uint32_t metadata,
                                                    std::uint32_t b0, std::uint32_t b1, std::uint32_t b2,
                                                    std::uint32_t b3) {
  static_assert(kSelector == 0 || kSelector == 1);
  asm("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(b2), "r"(b3), "r"(metadata), "n"(kSelector));
}

/// A tile of rows of kFeatures bf16 in shared memory, aligned to 128 bytes. The 16-byte chunks of a row are permuted so
/// that ldmatrix finds its eight rows in different banks: rows of whole 128 bytes exchange chunks inside groups of 8 by
/// the row number; rows of 64 and 192 bytes, two of which share a line of banks, inside groups of 4 by half of it.
template <int kFeatures>
struct Tile {
  static_assert(kFeatures % 32 == 0);
  static constexpr int kRowBytes = kFeatures * 2;
  static constexpr int kChunks = kFeatures / 8;
  static constexpr std::uint32_t kMask = kFeatures % 64 == 0 ? 7 : 3;

  static __device__ __forceinline__ std::uint32_t permutation(int row) {
    return kFeatures % 64 == 0 ? row & 7 : (row >> 1) & 3;
  }
  static __device__ __forceinline__ std::uint32_t offset(int row, int chunk) {
    return row * kRowBytes + ((static_cast<std::uint32_t>(chunk) ^ permutation(row)) << 4);
  }

  /// Where this lane points ldmatrix for the 16 x 16 block at row 0, feature 0; `at` moves it.
  /// As A, or as B of a product that sums over the rows (transposed): rows by lane % 16, then the features.
  static __device__ __forceinline__ std::uint32_t lane_rows_first(std::uint32_t tile) {
    const int lane = threadIdx.x & 31;
    return tile + offset(lane & 15, lane >> 4);
  }
  /// As B of a product that sums over the features.
  static __device__ __forceinline__ std::uint32_t lane_features_first(std::uint32_t tile) {
    const int lane = threadIdx.x & 31;
    return tile + offset((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
  }
  /// The block at row `row`, feature `feature`, both multiples of 16.
  static __device__ __forceinline__ std::uint32_t at(std::uint32_t lane_address, int row, int feature) {
    const std::uint32_t chunk = feature / 8;
    return (lane_address ^ ((chunk & kMask) << 4)) + (chunk & ~kMask) * 16 + row * kRowBytes;
  }
};

/// What load_tile reads: one head of a [B, T, heads, D] tensor.
struct HeadRows {
  const void* data;           // token 0
  std::int64_t token_stride;  // elements
  int tokens;
  int features;
};

/// Starts copying tokens [first, first + kRows) to a tile; zeros stand for tokens and features that do not exist.
template <int kRows, int kFeatures, int kThreads>
__device__ __forceinline__ void load_tile(std::uint32_t tile, const HeadRows& head, int first) {
  constexpr int kChunks = Tile<kFeatures>::kChunks, kCount = kRows * kChunks;
  const auto* data = static_cast<const std::uint16_t*>(head.data);
#pragma unroll
  for (int u = 0; u < (kCount + kThreads - 1) / kThreads; ++u) {
    const int i = u * kThreads + static_cast<int>(threadIdx.x);
    if (kCount % kThreads != 0 && i >= kCount) break;
    const int row = i / kChunks, chunk = i % kChunks;
    const bool valid = first + row < head.tokens && chunk * 8 < head.features;
    const std::int64_t at = valid ? (first + row) * head.token_stride + chunk * 8 : 0;
    copy_async(tile + Tile<kFeatures>::offset(row, chunk), data + at, valid);
  }
}

/// 16 rows of kFeatures f32 sums, times factor[0] (rows g) and factor[1] (rows g + 8), rounded to bf16 into rows
/// [row, row + 16) of a tile.
template <int kFeatures>
__device__ __forceinline__ void store_sums(std::uint32_t tile, int row, const float (&c)[kFeatures / 2],
                                           const float (&factor)[2]) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int j = 0; j < kFeatures / 8; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::uint32_t word;
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;"
          : "=r"(word)
          : "f"(c[4 * j + 2 * h + 1] * factor[h]), "f"(c[4 * j + 2 * h] * factor[h]));
      const std::uint32_t address = tile + Tile<kFeatures>::offset(row + (lane >> 2) + 8 * h, j) + (lane & 3) * 4;
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
    }
  }
}

/// Rows [row, row + kRows) of a tile, one warp's, to tokens [token, token + kRows) of `to`, as far as they exist.
template <int kRows, int kFeatures>
__device__ __forceinline__ void write_rows(const HeadRows& to, std::uint32_t tile, int row, int token) {
  constexpr int kChunks = Tile<kFeatures>::kChunks;
  auto* data = const_cast<std::uint16_t*>(static_cast<const std::uint16_t*>(to.data));
#pragma unroll 4
  for (int i = threadIdx.x & 31; i < kRows * kChunks; i += 32) {
    const int r = i / kChunks, chunk = i % kChunks;
    std::uint32_t x[4];
    load_shared(x, tile + Tile<kFeatures>::offset(row + r, chunk));
    if (token + r < to.tokens && chunk * 8 < to.features)
      *reinterpret_cast<uint4*>(data + (token + r) * to.token_stride + chunk * 8) = make_uint4(x[0], x[1], x[2], x[3]);
  }
}

}  // namespace sfa::sm80
