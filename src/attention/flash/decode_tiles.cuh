// Tiles of keys and values on their way through a warp's ring: rows by cp.async into shared memory, and V as the left
// operand of the product with P^T.
#pragma once

#include "attention/flash/decode_args.cuh"
#include "attention/flash/decode_warp.cuh"

namespace sfa::flash {

/// Rows [t0, t0 + TOKENS) of a [*, features] tensor into shared rows of WIDTH bytes at a pitch of 16 more, which
/// spreads eight rows over all banks. Rows outside [lo, hi) and what lies behind the features become zero.
template <int TOKENS, int WIDTH>
struct RowLoader {
  static constexpr int kPitch = WIDTH + 16;
  static constexpr int kBytes = TOKENS * kPitch;
  static constexpr int kPieces = WIDTH / 16;
  static constexpr int kStep = 32 / kPieces;  // rows that the warp copies at a time
  static_assert(kPieces <= 32 && 32 % kPieces == 0 && TOKENS % kStep == 0);

  const char* base;
  std::int64_t pitch;  // bytes between tokens
  int bytes;           // of a row

  __device__ __forceinline__ RowLoader(const void* data, const Strides& s, int element, int b, int g, int features)
      : base(static_cast<const char*>(data) + element * (b * s.batch + g * s.head)),
        pitch(element * s.token),
        bytes(element * features) {}

  __device__ __forceinline__ void load(char* to, int t0, int lo, int hi) const {
    const int lane = threadIdx.x % 32, piece = lane % kPieces, row = lane / kPieces;
    const char* from = base + (t0 + row) * pitch + piece * 16;
    char* target = to + row * kPitch + piece * 16;
    if (t0 >= lo && t0 + TOKENS <= hi && bytes == WIDTH) {
#pragma unroll
      for (int j = 0; j < TOKENS / kStep; ++j) copy_async(target + j * kStep * kPitch, from + j * kStep * pitch);
    } else {
      const int there = min(max(bytes - piece * 16, 0), 16);
#pragma unroll
      for (int j = 0; j < TOKENS / kStep; ++j) {
        const int t = t0 + row + j * kStep;
        const bool valid = t >= lo && t < hi && there > 0;
        copy_async(target + j * kStep * kPitch, valid ? from + j * kStep * pitch : base, valid ? there : 0);
      }
    }
  }
};

/// Weights P^T of 16 keys x 8 rows, as the right operand of the product with V.
using Weights = std::uint32_t[2];

/// V in the cache: bf16, or int8 whose scale the weights carry. An operand holds 16 features of V as rows: bf16 in
/// their order (rows q, q + 8 of the product are features q, q + 8), int8 even features before odd ones (2q, 2q + 1),
/// as the pairs come out of the transposing load.
template <class C>
struct ValueTile {
  static constexpr int kElement = C::kInt8 ? 1 : 2;
  using Rows = RowLoader<C::kTokens, C::kDv * kElement>;
  /// Feature of element e of the d-th block of sums.
  static __device__ __forceinline__ int feature(int d, int e) {
    const int q = threadIdx.x % 32 / 4;
    return d * 16 + (C::kInt8 ? 2 * q + e / 2 : q + e / 2 * 8);
  }

  /// O^T += V^T P^T for the 16 keys whose rows of V start at `rows`.
  static __device__ __forceinline__ void add(float (&o)[C::kDv / 16][C::kColumns][4], const char* rows,
                                             const Weights (&weights)[C::kColumns]) {
    const int lane = threadIdx.x % 32;
    if constexpr (C::kInt8) {
      const char* at = rows + ((lane & 7) + (lane >> 3 & 1) * 8) * Rows::kPitch + (lane >> 4) * 16;
#pragma unroll
      for (int d = 0; d < C::kDv / 16; d += 2) {
        std::uint32_t bytes[4];  // keys 0..7 and 8..15 of 16 features, then of the next 16
        load_matrices_transposed(bytes, at + d * 16);
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const std::uint32_t v[4] = {even_bytes_bf16(bytes[2 * u]), odd_bytes_bf16(bytes[2 * u]),
                                      even_bytes_bf16(bytes[2 * u + 1]), odd_bytes_bf16(bytes[2 * u + 1])};
#pragma unroll
          for (int n = 0; n < C::kColumns; ++n) multiply_add(o[d + u][n], v, weights[n][0], weights[n][1]);
        }
      }
    } else {
      const char* at = rows + ((lane & 7) + (lane >> 4) * 8) * Rows::kPitch + (lane >> 3 & 1) * 16;
#pragma unroll
      for (int d = 0; d < C::kDv / 16; ++d) {
        std::uint32_t v[4];
        load_matrices_transposed(v, at + d * 32);
#pragma unroll
        for (int n = 0; n < C::kColumns; ++n) multiply_add(o[d][n], v, weights[n][0], weights[n][1]);
      }
    }
  }
};

/// The scales (those of one sequence and head start at `from`) of a tile of TOKENS keys; keys beyond hi get 0.
template <int TOKENS>
__device__ __forceinline__ void load_scales(const __nv_bfloat16* from, char* to, int t0, int hi) {
  const int at = t0 + threadIdx.x % 32 * 8;
  if (threadIdx.x % 32 >= TOKENS / 8) return;
  const int there = min(max(hi - at, 0), 8);
  copy_async(to + threadIdx.x % 32 * 16, there > 0 ? from + at : from, 2 * there);
}

/// Where the scales of a unit's rows start.
__device__ __forceinline__ const __nv_bfloat16* unit_scales(const void* scales, const Strides& s,
                                                            const DecodeUnit& unit) {
  return static_cast<const __nv_bfloat16*>(scales) + unit.b * s.batch + unit.g * s.head;
}

/// Until the oldest of `groups` groups of copies has arrived.
__device__ __forceinline__ void wait_for_oldest(int groups) {
  if (groups >= 3)
    copy_wait<2>();
  else if (groups == 2)
    copy_wait<1>();
  else
    copy_wait<0>();
}

}  // namespace sfa::flash
