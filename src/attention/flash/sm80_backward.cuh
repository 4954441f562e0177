// The tiled attention backward for every card from compute capability 8.0 on (mma.sync, cp.async); flash_backward.h
// states the mathematics. No block adds to what another one wrote, so the same inputs give the same bits: dQ sums over
// keys in a kernel whose blocks own query rows, dK and dV over queries (and the query heads of a group) in one whose
// blocks own keys. Both recompute S and dP: seven products instead of five.
//
// With keys as rows of the fragments, S^T = K Q^T and dP^T = V dO^T come out of the accumulators as the operands of
// dV = P^T dO and dK = dS^T Q; with queries as rows, dS as that of dQ = dS K. Nothing goes through shared memory but
// the tiles. Reads LSE / ln 2 and D, which sm80_backward.cu's first kernel writes; accumulates in registers.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstdint>

#include "attention/flash/flash_backward.h"
#include "attention/flash/forward_schedule.cuh"
#include "cuda/exp2.cuh"
#include "cuda/sm80_mma.cuh"

namespace sfa::flash {

/// LSE and D are padded to whole tiles of this many rows.
inline constexpr int kSm80PaddedRows = 64;

struct Sm80BackwardArgs {
  ForwardArgs problem;  // shape, ranges, scale, scale_log2
  const void *q, *k, *v, *d_out;
  void *d_q, *d_k, *d_v;
  Strides q_stride, k_stride, v_stride, d_out_stride, d_q_stride, d_k_stride, d_v_stride;
  const float* lse2;   // [B, H, padded_rows]: LSE / ln 2, +inf for rows without keys and for padding: P = 0
  const float* delta;  // [B, H, padded_rows]: D, 0 for padding
  int padded_rows;
  int tiles;  // of a head: of keys or of query rows
};

/// One head of a [B, T, heads, D] tensor.
__device__ __forceinline__ sm80::HeadRows sm80_head(const void* data, const Strides& stride, int batch, int head,
                                                    int tokens, int features) {
  const auto* rows = static_cast<const std::uint16_t*>(data) + batch * stride.batch + head * stride.head;
  return {rows, stride.token, tokens, features};
}

/// c = A B^T over kFeatures: A the kAtoms x 16 rows at `a_rows`, B the kColumns rows at `b_rows`, both tiles.
template <int kFeatures, int kAtoms, int kColumns>
__device__ __forceinline__ void multiply_features(float (&c)[kAtoms][kColumns / 2], std::uint32_t a_rows,
                                                  std::uint32_t b_rows) {
  using Tile = sm80::Tile<kFeatures>;
  const std::uint32_t a_lane = Tile::lane_rows_first(a_rows), b_lane = Tile::lane_features_first(b_rows);
#pragma unroll
  for (int m = 0; m < kAtoms; ++m)
#pragma unroll
    for (float& x : c[m]) x = 0.0f;
#pragma unroll
  for (int f = 0; f < kFeatures; f += 16) {
    std::uint32_t a[kAtoms][4];
#pragma unroll
    for (int m = 0; m < kAtoms; ++m) sm80::load_matrices(a[m], Tile::at(a_lane, 16 * m, f));
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) {
      std::uint32_t b[4];
      sm80::load_matrices(b, Tile::at(b_lane, 16 * j, f));
#pragma unroll
      for (int m = 0; m < kAtoms; ++m) {
        sm80::multiply_add(&c[m][8 * j], a[m], b[0], b[1]);
        sm80::multiply_add(&c[m][8 * j + 4], a[m], b[2], b[3]);
      }
    }
  }
}

/// c += A B, A the fragments `a` of kAtoms x 16 rows and kSum columns, B the kSum rows at `b_rows`, a tile.
template <int kFeatures, int kAtoms, int kSum>
__device__ __forceinline__ void multiply_rows(float (&c)[kAtoms][kFeatures / 2],
                                              const std::uint32_t (&a)[kAtoms][kSum / 16][4], std::uint32_t b_rows) {
  using Tile = sm80::Tile<kFeatures>;
  const std::uint32_t b_lane = Tile::lane_rows_first(b_rows);
#pragma unroll
  for (int step = 0; step < kSum / 16; ++step) {
#pragma unroll
    for (int j = 0; j < kFeatures / 16; ++j) {
      std::uint32_t b[4];
      sm80::load_matrices_transposed(b, Tile::at(b_lane, 16 * step, 16 * j));
#pragma unroll
      for (int m = 0; m < kAtoms; ++m) {
        sm80::multiply_add(&c[m][8 * j], a[m][step], b[0], b[1]);
        sm80::multiply_add(&c[m][8 * j + 4], a[m][step], b[2], b[3]);
      }
    }
  }
}

template <int kAtoms, int kColumns>
__device__ __forceinline__ void pack_operand(std::uint32_t (&to)[kAtoms][kColumns / 16][4],
                                             const float (&from)[kAtoms][kColumns / 2]) {
#pragma unroll
  for (int m = 0; m < kAtoms; ++m)
#pragma unroll
    for (int i = 0; i < kColumns / 4; ++i) to[m][i / 4][i % 4] = pack_bf16(from[m][2 * i], from[m][2 * i + 1]);
}

/// Sums of one warp's rows through shared memory to a tensor. `staging` has room for every warp's rows; all warps call.
template <int kFeatures, int kAtoms>
__device__ __forceinline__ void store_rows(const sm80::HeadRows& to, std::uint32_t staging,
                                           const float (&sums)[kAtoms][kFeatures / 2], float factor, int first_token) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const std::uint32_t mine = staging + warp * kAtoms * 16 * sm80::Tile<kFeatures>::kRowBytes;
  const float factors[2] = {factor, factor};
  __syncthreads();
#pragma unroll
  for (int m = 0; m < kAtoms; ++m) sm80::store_sums<kFeatures>(mine, 16 * m, sums[m], factors);
  __syncwarp();
  sm80::write_rows<16 * kAtoms, kFeatures>(to, mine, 0, first_token + warp * kAtoms * 16);
}

}  // namespace sfa::flash
