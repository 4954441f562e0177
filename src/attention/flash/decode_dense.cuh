// Scores of dense keys: S^T = K Q^T on tensor cores, K from the warp's ring, Q^T in registers or in shared memory.
// Keys in 8 bits become bf16 on the way from shared memory, exactly; a score takes its key's scale, a weight its
// value's. Softmax runs on the fragments: lane (q, r) holds keys q, q + 8 of rows 2r, 2r + 1; P^T is turned by
// movmatrix into the right operand of the product with V.
#pragma once

#include "attention/flash/decode_kernel.cuh"

namespace sfa::flash {

template <int DQK, int DV, bool INT8, int COLUMNS, int TOKENS, int WARPS, int STAGES, int BLOCKS>
struct DecodeConfig {
  static constexpr int kDqk = DQK, kDv = DV;  // widths in shared memory; head sizes may be smaller
  static constexpr int kColumns = COLUMNS;    // tiles of eight query rows
  static constexpr int kTokens = TOKENS;      // keys a tile, a multiple of 16
  static constexpr int kWarps = WARPS, kStages = STAGES;
  static constexpr bool kInt8 = INT8;     // K and V
  static constexpr int kBlocks = BLOCKS;  // on an SM at a time
};

template <class C>
class DenseScores {
 public:
  using Config = C;
  static constexpr int kElement = C::kInt8 ? 1 : 2;
  using Rows = RowLoader<C::kTokens, C::kDqk * kElement>;
  static constexpr int tile_bytes(int) { return Rows::kBytes + (C::kInt8 ? C::kTokens * 2 : 0); }
  static constexpr int kQueryPitch = C::kDqk * 2 + 16;
  static constexpr int kSharedBytes = C::kColumns * 8 * kQueryPitch;
  static constexpr int kWarpBytes = 0;
  static constexpr int kSteps = C::kDqk / 16;
  static constexpr bool kInRegisters = kSteps * C::kColumns <= 8;

  __device__ __forceinline__ DenseScores(const DecodeArgs& a, const DecodeUnit& unit)
      : keys_(a.p.k, a.p.k_stride, kElement, unit.b, unit.g, a.p.shape.Dqk), scale_(a.scale_log2) {
    if constexpr (C::kInt8) key_scales_ = unit_scales(a.p.k_scale, a.p.k_scale_stride, unit);
  }

  static __device__ __forceinline__ void clear(char*) {}

  /// All threads: the unit's query rows into shared memory, zero where there is none. For keys in 8 bits sixteen
  /// features lie as the key's come out of bytes: even ones before odd ones.
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
      if constexpr (C::kInt8) {
        // Features 2j and 2j + 1 of a group of sixteen go to places j and 8 + j.
        char* to = shared + row * kQueryPitch + piece / 2 * 32 + piece % 2 * 8;
        *reinterpret_cast<uint2*>(to) = {__byte_perm(x.x, x.y, 0x5410), __byte_perm(x.z, x.w, 0x5410)};
        *reinterpret_cast<uint2*>(to + 16) = {__byte_perm(x.x, x.y, 0x7632), __byte_perm(x.z, x.w, 0x7632)};
      } else {
        *reinterpret_cast<uint4*>(shared + row * kQueryPitch + piece * 16) = x;
      }
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
    if constexpr (C::kInt8) load_scales<C::kTokens>(key_scales_, stage + Rows::kBytes, t0, hi);
  }

  __device__ __forceinline__ void weigh(const char* stage, const char* value_scales, int t0, const UnitRanges& ranges,
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
          if constexpr (C::kInt8) x *= scale_of(stage + Rows::kBytes, m, e);
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
          if constexpr (C::kInt8) p[e] *= scale_of(value_scales, m, e);
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
  /// Of the key that element e of the m-th matrix of scores belongs to.
  static __device__ __forceinline__ float scale_of(const char* scales, int m, int e) {
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(scales)[m * 16 + threadIdx.x % 32 / 4 + e / 2 * 8]);
  }

  /// Left operands of steps k and k + 1: the m-th 16 keys, 32 features.
  static __device__ __forceinline__ void load_keys(std::uint32_t (&keys)[2][4], const char* stage, int m, int k) {
    const int lane = threadIdx.x % 32;
    const char* at = stage + (m * 16 + (lane & 15)) * Rows::kPitch + (lane >> 4) * 16;
    if constexpr (C::kInt8) {
      std::uint32_t bytes[4];  // keys 0..7 and 8..15 of 16 features, then of the next 16
      load_matrices(bytes, at + k * 16);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        keys[u][0] = even_bytes_bf16(bytes[2 * u]), keys[u][1] = even_bytes_bf16(bytes[2 * u + 1]);
        keys[u][2] = odd_bytes_bf16(bytes[2 * u]), keys[u][3] = odd_bytes_bf16(bytes[2 * u + 1]);
      }
    } else {
      load_matrices(keys[0], at + k * 32);
      load_matrices(keys[1], at + k * 32 + 32);
    }
  }

  /// Right operands of steps s and s + 1.
  __device__ __forceinline__ void load_queries(std::uint32_t (&to)[4], int n, int s) const {
    const int lane = threadIdx.x % 32;
    load_matrices(to, queries_ + (n * 8 + (lane & 7)) * kQueryPitch + s * 32 + (lane >> 3) * 16);
  }

  __device__ __forceinline__ void multiply(float (&s)[C::kTokens / 16][C::kColumns][4], const char* stage) const {
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
      for (int m = 0; m < C::kTokens / 16; ++m) {
        std::uint32_t keys[2][4];
        load_keys(keys, stage, m, k);
#pragma unroll
        for (int u = 0; u < 2; ++u)
#pragma unroll
          for (int n = 0; n < C::kColumns; ++n) multiply_add(s[m][n], keys[u], q[n][2 * u], q[n][2 * u + 1]);
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
  const __nv_bfloat16* key_scales_ = nullptr;
  const char* queries_ = nullptr;
  float scale_;
  std::uint32_t q_[kInRegisters ? C::kColumns : 1][kInRegisters ? kSteps / 2 : 1][4];
  float top_[C::kColumns][2], total_[C::kColumns][2];
};

}  // namespace sfa::flash
