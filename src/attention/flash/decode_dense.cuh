// Scores of dense keys: S^T = K Q^T on tensor cores, K from the warp's ring, Q^T in registers or in shared memory.
// Softmax runs on the fragments: lane (q, r) holds keys q, q + 8 of rows 2r, 2r + 1; P^T is turned by movmatrix into
// the right operand of the product with V.
#pragma once

#include "attention/flash/decode_kernel.cuh"

namespace sfa::flash {

template <int DQK, int DV, int COLUMNS, int TOKENS, int WARPS, int STAGES, int BLOCKS>
struct DecodeConfig {
  static constexpr int kDqk = DQK, kDv = DV;  // widths in shared memory; head sizes may be smaller
  static constexpr int kColumns = COLUMNS;    // tiles of eight query rows
  static constexpr int kTokens = TOKENS;      // keys a tile, a multiple of 16
  static constexpr int kWarps = WARPS, kStages = STAGES;
  static constexpr bool kInt8 = false;
  static constexpr int kBlocks = BLOCKS;  // on an SM at a time
};

template <class C>
class DenseScores {
 public:
  using Config = C;
  using Rows = RowLoader<C::kTokens, C::kDqk * 2>;
  static constexpr int tile_bytes(int) { return Rows::kBytes; }
  static constexpr int kSharedBytes = C::kColumns * 8 * Rows::kPitch;
  static constexpr int kWarpBytes = 0;
  static constexpr int kSteps = C::kDqk / 16;
  static constexpr bool kInRegisters = kSteps * C::kColumns <= 8;

  __device__ __forceinline__ DenseScores(const DecodeArgs& a, const DecodeUnit& unit)
      : keys_(a.p.k, a.p.k_stride, 2, unit.b, unit.g, a.p.shape.Dqk), scale_(a.scale_log2) {}

  static __device__ __forceinline__ void clear(char*) {}

  /// All threads: the unit's query rows into shared memory, zero where there is none.
  static __device__ __forceinline__ void prepare(const DecodeArgs& a, const DecodeUnit& unit, char* shared) {
    constexpr int kPieces = C::kDqk / 8;
    for (int i = threadIdx.x; i < C::kColumns * 8 * kPieces; i += C::kWarps * 32) {
      const int row = i / kPieces, piece = i % kPieces;
      uint4 x{};
      if (row < unit.rows && piece * 8 < a.p.shape.Dqk) {
        const auto* q = static_cast<const __nv_bfloat16*>(a.p.q) + unit.b * a.p.q_stride.batch +
                        unit.token(a, row) * a.p.q_stride.token + unit.head(a, row) * a.p.q_stride.head;
        x = *reinterpret_cast<const uint4*>(q + piece * 8);
      }
      *reinterpret_cast<uint4*>(shared + row * Rows::kPitch + piece * 16) = x;
    }
  }

  /// After the barrier behind prepare.
  __device__ __forceinline__ void start(const char* shared, char*) {
    queries_ = shared;
    if constexpr (kInRegisters) {
#pragma unroll
      for (int n = 0; n < C::kColumns; ++n)
#pragma unroll
        for (int s = 0; s < kSteps; s += 2) load_queries(q_[n][s / 2], n, s);
    }
#pragma unroll
    for (int n = 0; n < C::kColumns; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        top_[n][e] = kNoMaximum;
        total_[n][e] = 0;
      }
  }

  __device__ __forceinline__ void load(char* stage, int t0, int lo, int hi) const {
    keys_.load(stage, t0, lo, hi);
  }

  __device__ __forceinline__ void weigh(const char* stage, const char*, int t0, const UnitRanges& ranges,
                                        Weights (&weights)[C::kTokens / 16][C::kColumns],
                                        float (&o)[C::kDv / 16][C::kColumns][4]) {
    constexpr int kMatrices = C::kTokens / 16;
    float s[kMatrices][C::kColumns][4] = {};
    multiply(s, stage);
    const bool full = t0 >= ranges.full_lo && t0 + C::kTokens <= ranges.full_hi;
    const int lane = threadIdx.x % 32;
    bool higher = false;
#pragma unroll
    for (int n = 0; n < C::kColumns; ++n)
#pragma unroll
      for (int m = 0; m < kMatrices; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& x = s[m][n][e];
          x *= scale_;
          if (!full) {
            const int row = n * 8 + lane % 4 * 2 + e % 2, t = t0 + m * 16 + lane / 4 + e / 2 * 8;
            if (t < ranges.lo[row] || t >= ranges.hi[row]) x = -INFINITY;
          }
          higher = higher || x > top_[n][e % 2] + kLazyMaximum;
        }
    if (__any_sync(0xffffffffu, higher)) raise(s, o);
#pragma unroll
    for (int m = 0; m < kMatrices; ++m)
#pragma unroll
      for (int n = 0; n < C::kColumns; ++n) {
        float p[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          p[e] = exp2_mufu(s[m][n][e] - top_[n][e % 2]);
          total_[n][e % 2] += p[e];
        }
        weights[m][n][0] = transpose_matrix(pack_bf16(p[0], p[1]));
        weights[m][n][1] = transpose_matrix(pack_bf16(p[2], p[3]));
      }
  }

  /// Maximum and sum of every row; all lanes.
  __device__ __forceinline__ void finish(float* maxima, float* totals) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < C::kColumns; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float total = total_[n][e];
#pragma unroll
        for (int step = 4; step < 32; step *= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
        if (lane < 4) {
          maxima[n * 8 + lane * 2 + e] = top_[n][e];
          totals[n * 8 + lane * 2 + e] = total;
        }
      }
  }

 private:
  /// Right operands of steps s and s + 1.
  __device__ __forceinline__ void load_queries(std::uint32_t (&to)[4], int n, int s) const {
    const int lane = threadIdx.x % 32;
    load_matrices(to, queries_ + (n * 8 + (lane & 7)) * Rows::kPitch + s * 32 + (lane >> 3) * 16);
  }

  __device__ __forceinline__ void multiply(float (&s)[C::kTokens / 16][C::kColumns][4], const char* stage) const {
    const int lane = threadIdx.x % 32;
    const char* at = stage + (lane & 15) * Rows::kPitch + (lane >> 4) * 16;
#pragma unroll
    for (int k = 0; k < kSteps; k += 2) {
      std::uint32_t q[C::kColumns][4];
#pragma unroll
      for (int n = 0; n < C::kColumns; ++n) {
        if constexpr (kInRegisters) {
#pragma unroll
          for (int e = 0; e < 4; ++e) q[n][e] = q_[n][k / 2][e];
        } else {
          load_queries(q[n], n, k);
        }
      }
#pragma unroll
      for (int m = 0; m < C::kTokens / 16; ++m)
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          std::uint32_t keys[4];
          load_matrices(keys, at + m * 16 * Rows::kPitch + (k + u) * 32);
#pragma unroll
          for (int n = 0; n < C::kColumns; ++n) multiply_add(s[m][n], keys, q[n][2 * u], q[n][2 * u + 1]);
        }
    }
  }

  __device__ __forceinline__ void raise(const float (&s)[C::kTokens / 16][C::kColumns][4],
                                        float (&o)[C::kDv / 16][C::kColumns][4]) {
#pragma unroll
    for (int n = 0; n < C::kColumns; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float top = top_[n][e];
#pragma unroll
        for (int m = 0; m < C::kTokens / 16; ++m) top = fmaxf(top, fmaxf(s[m][n][e], s[m][n][e + 2]));
#pragma unroll
        for (int step = 4; step < 32; step *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
        const float factor = exp2_mufu(top_[n][e] - top);
        top_[n][e] = top;
        total_[n][e] *= factor;
#pragma unroll
        for (int d = 0; d < C::kDv / 16; ++d) {
          o[d][n][e] *= factor;
          o[d][n][e + 2] *= factor;
        }
      }
  }

  Rows keys_;
  const char* queries_ = nullptr;
  float scale_;
  std::uint32_t q_[kInRegisters ? C::kColumns : 1][kInRegisters ? kSteps / 2 : 1][4];
  float top_[C::kColumns][2], total_[C::kColumns][2];
};

}  // namespace sfa::flash
