// The product of queries and keys, S = Q K^T, as a policy of the sm_80 forward: what a warp keeps of its query rows,
// which lie in shared memory as a Tile of kDqk features, and how it multiplies them with a block of keys.
#pragma once

#include <cstdint>

#include "cuda/sm80_mma.cuh"
#include "cuda/sm80_sparse.h"

namespace sfa::flash {

/// Rows as they are, read from shared memory by every product.
template <int kDqk, int kAtoms, int kKeys>
struct Sm80DenseScores {
  static constexpr bool kPrepares = false;

  /// S += Q K^T; `rows` are this warp's queries.
  __device__ __forceinline__ void multiply(float (&s)[kAtoms][kKeys / 2], std::uint32_t rows,
                                           std::uint32_t keys) const {
    using Tile = sm80::Tile<kDqk>;
    const std::uint32_t q_lane = Tile::lane_rows_first(rows), k_lane = Tile::lane_features_first(keys);
#pragma unroll
    for (int f = 0; f < kDqk; f += 16) {
      std::uint32_t a[kAtoms][4];
#pragma unroll
      for (int m = 0; m < kAtoms; ++m) sm80::load_matrices(a[m], Tile::at(q_lane, 16 * m, f));
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        std::uint32_t b[4];
        sm80::load_matrices(b, Tile::at(k_lane, 16 * j, f));
#pragma unroll
        for (int m = 0; m < kAtoms; ++m) {
          sm80::multiply_add(&s[m][8 * j], a[m], b[0], b[1]);
          sm80::multiply_add(&s[m][8 * j + 4], a[m], b[2], b[3]);
        }
      }
    }
  }
};

/// Rows of whose every four neighbouring features at most two are not zero, compressed 2 of 4: half the products. The
/// compressed rows take the place of the full ones in shared memory, 16 bytes a lane for each atom and step of 32
/// features; their metadata stay in registers, a word for two products.
template <int kDqk, int kAtoms, int kKeys>
struct Sm80Sparse24Scores {
  static constexpr bool kPrepares = true;  // prepare() when this warp's rows are there, before the first product
  static constexpr int kSteps = kDqk / 32;

  std::uint32_t metadata[(kSteps * kAtoms + 1) / 2];

  /// Products in the order of steps, then of atoms: number i has word i / 2 and selector i % 2.
  static constexpr int product(int step, int atom) { return step * kAtoms + atom; }
  static __device__ __forceinline__ std::uint32_t fragment(std::uint32_t rows, int step, int atom) {
    return rows + atom * 16 * kDqk * 2 + step * 512 + (threadIdx.x & 31) * 16;
  }

  /// Each atom into the first half of its own rows; lanes read what others see of them before anyone writes.
  __device__ __forceinline__ void prepare(std::uint32_t rows) {
    const int lane = static_cast<int>(threadIdx.x) & 31, g = lane / 4, t = lane % 4;
#pragma unroll
    for (std::uint32_t& word : metadata) word = 0;
#pragma unroll
    for (int m = 0; m < kAtoms; ++m) {
      std::uint32_t a[kSteps][4];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        std::uint32_t words[2] = {0, 0};  // of columns 0 .. 15 and 16 .. 31
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int feature = 32 * s + sm80::sparse_column(t, w);
          std::uint32_t low, high;
          sm80::load_shared(
              low, high,
              rows + sm80::Tile<kDqk>::offset(16 * m + sm80::sparse_row(g, w), feature / 8) + feature % 8 * 2);
          const sm80::TwoOfFour kept = sm80::two_of_four(low, high);
          a[s][w] = kept.values;
          words[w / 2] |= sm80::metadata_part(t, w, kept.places);
        }
#pragma unroll
        for (std::uint32_t& word : words) {
          word |= __shfl_xor_sync(0xffffffffu, word, 1);
          word |= __shfl_xor_sync(0xffffffffu, word, 2);
        }
        const int i = product(s, m);
        if (sm80::supplies_metadata(t, i % 2)) metadata[i / 2] = t % 2 == 0 ? words[0] : words[1];
      }
      __syncwarp();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) sm80::store_shared(fragment(rows, s, m), a[s]);
    }
  }

  __device__ __forceinline__ void multiply(float (&s)[kAtoms][kKeys / 2], std::uint32_t rows,
                                           std::uint32_t keys) const {
    using Tile = sm80::Tile<kDqk>;
    const std::uint32_t k_lane = Tile::lane_features_first(keys);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      std::uint32_t a[kAtoms][4];
#pragma unroll
      for (int m = 0; m < kAtoms; ++m) sm80::load_shared(a[m], fragment(rows, step, m));
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        std::uint32_t b[2][4];  // features 0 .. 15 and 16 .. 31 of the step
        sm80::load_matrices(b[0], Tile::at(k_lane, 16 * j, 32 * step));
        sm80::load_matrices(b[1], Tile::at(k_lane, 16 * j, 32 * step + 16));
#pragma unroll
        for (int m = 0; m < kAtoms; ++m) {
          const int i = product(step, m);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float* c = &s[m][8 * j + 4 * half];
            const std::uint32_t b0 = b[0][2 * half], b1 = b[0][2 * half + 1], b2 = b[1][2 * half],
                                b3 = b[1][2 * half + 1];
            if (i % 2 == 0)
              sm80::sparse_multiply_add<0>(c, a[m], metadata[i / 2], b0, b1, b2, b3);
            else
              sm80::sparse_multiply_add<1>(c, a[m], metadata[i / 2], b0, b1, b2, b3);
          }
        }
      }
    }
  }
};

}  // namespace sfa::flash
