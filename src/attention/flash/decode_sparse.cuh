// Scores of sparse keys: a lane takes a key, reads its k values and feature numbers, or the mask of its features, from
// the warp's ring, and looks the queries' features up in a table in shared memory. An entry of the table holds one
// feature of all ROWS query rows of the unit (bf16, as the queries are; f32 when there is one row), so that one look-up
// serves all of them; products and sums are f32. P goes through shared memory to become the right operand of the
// product with V.
#pragma once

#include "attention/flash/decode_kernel.cuh"
#include "cuda/vector.cuh"

namespace sfa::flash {

/// One feature of ROWS query rows; more than eight rows take two planes, so that a look-up is never wider than 16
/// bytes.
template <int ROWS>
struct QueryTable {
  static constexpr int kPlanes = ROWS > 8 ? 2 : 1;
  static constexpr int kEntry = ROWS == 1 ? 4 : 2 * ROWS / kPlanes;  // bytes
  template <int WIDTH>
  static constexpr int kBytes = WIDTH* kEntry* kPlanes;

  template <int WIDTH>
  static __device__ __forceinline__ void put(char* table, int feature, int row, __nv_bfloat16 x) {
    if constexpr (ROWS == 1)
      *reinterpret_cast<float*>(table + feature * 4) = __bfloat162float(x);
    else
      *reinterpret_cast<__nv_bfloat16*>(table + row / 8 * (WIDTH * kEntry) + feature * kEntry + row % 8 * 2) = x;
  }

  /// s[row] += x * q[row][feature].
  template <int WIDTH>
  static __device__ __forceinline__ void add(float (&s)[ROWS], const char* table, std::uint32_t feature, float x) {
    if constexpr (ROWS == 1) {
      s[0] = fmaf(x, *reinterpret_cast<const float*>(table + feature * 4), s[0]);
    } else {
      constexpr int kWords = kEntry / 4;
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) {
        std::uint32_t pairs[kWords];
        const char* at = table + plane * (WIDTH * kEntry) + feature * kEntry;
        if constexpr (kWords == 1) {
          pairs[0] = *reinterpret_cast<const std::uint32_t*>(at);
        } else if constexpr (kWords == 2) {
          const uint2 t = *reinterpret_cast<const uint2*>(at);
          pairs[0] = t.x, pairs[1] = t.y;
        } else {
          const uint4 t = *reinterpret_cast<const uint4*>(at);
          pairs[0] = t.x, pairs[1] = t.y, pairs[2] = t.z, pairs[3] = t.w;
        }
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
          s[plane * 8 + 2 * w] = fmaf(x, low_bf16(pairs[w]), s[plane * 8 + 2 * w]);
          s[plane * 8 + 2 * w + 1] = fmaf(x, high_bf16(pairs[w]), s[plane * 8 + 2 * w + 1]);
        }
      }
    }
  }
};

/// Takes the lowest bit out of a word; 31 where there is none.
__device__ __forceinline__ std::uint32_t take_lowest_bit(std::uint32_t& word) {
  const std::uint32_t bit = word & (0u - word);
  word ^= bit;
  return static_cast<std::uint32_t>(31 - __clz(static_cast<int>(bit))) & 31u;
}

/// The features of a key by its mask, lowest first: next() k times, by all lanes together. Lanes come to the end of
/// their words at different times, so that takes no branch. Whatever a mask holds, features are below 256.
/// Up to 64 features: both words in registers.
class ShortMask {
 public:
  __device__ __forceinline__ ShortMask(const std::uint32_t* row, int words)
      : word_(row[0]), high_(words > 1 ? row[1] : 0) {}
  __device__ __forceinline__ std::uint32_t next() {
    if (word_ == 0) {
      word_ = high_;
      base_ = 32;
    }
    return base_ + take_lowest_bit(word_);
  }

 private:
  std::uint32_t word_, high_, base_ = 0;
};

/// Up to 256: the numbers of the words that have bits, four bits each, so that the next word is never an empty one.
class LongMask {
 public:
  __device__ __forceinline__ LongMask(const std::uint32_t* row, int words) : row_(row) {
    int filled = 0;
    for (int w = 0; w < words; ++w) {
      if (row[w] == 0) continue;
      order_ |= static_cast<std::uint32_t>(w) << filled;
      filled += 4;
    }
    take_up();
  }
  __device__ __forceinline__ std::uint32_t next() {
    if (word_ == 0) {
      order_ >>= 4;
      take_up();
    }
    return base_ + take_lowest_bit(word_);
  }

 private:
  __device__ __forceinline__ void take_up() {
    word_ = row_[order_ & 15u];
    base_ = (order_ & 15u) * 32;
  }

  const std::uint32_t* row_;
  std::uint32_t order_ = 0, word_, base_;
};

template <int ROWS, int DQK, int DV, bool INT8, int WARPS, int STAGES, int BLOCKS>
struct SparseDecodeConfig {
  static constexpr int kRows = ROWS;  // 1, 2, 4, 8 or 16
  static constexpr int kDqk = DQK, kDv = DV;
  static constexpr int kColumns = ROWS > 8 ? 2 : 1;
  static constexpr int kTokens = 32;
  static constexpr bool kInt8 = INT8;  // V
  static constexpr int kWarps = WARPS, kStages = STAGES, kBlocks = BLOCKS;
};

template <class C>
class SparseScores {
 public:
  using Config = C;
  using Table = QueryTable<C::kRows>;
  static constexpr int kRows = C::kRows;
  static constexpr int tile_bytes(int key) { return C::kTokens * key; }
  static constexpr int kSharedBytes = Table::template kBytes<C::kDqk>;
  static constexpr int kWeightPitch = C::kTokens * 2 + 16;
  static constexpr int kWarpBytes = C::kColumns * 8 * kWeightPitch;

  __device__ __forceinline__ SparseScores(const DecodeArgs& a, const DecodeUnit& unit)
      : k_(a.p.k_sparse.k),
        mask_words_(a.p.k_sparse.mask_bytes / 4),
        support_bytes_(a.p.k_sparse.support_bytes()),
        scale_(a.scale_log2) {
    const SparseRows& keys = a.p.k_sparse;
    values_ = static_cast<const char*>(keys.values) +
              2 * (unit.b * keys.values_stride.batch + unit.g * keys.values_stride.head);
    support_ = reinterpret_cast<const char*>(keys.support) + unit.b * keys.support_stride.batch +
               unit.g * keys.support_stride.head;
  }

  /// A warp's weights: columns of rows that do not exist stay zero.
  static __device__ __forceinline__ void clear(char* mine) {
    for (int i = threadIdx.x % 32; i < kWarpBytes / 4; i += 32) reinterpret_cast<std::uint32_t*>(mine)[i] = 0;
  }

  /// The table: a warp takes a query row, clears its entries and puts in the features of its support.
  static __device__ __forceinline__ void prepare(const DecodeArgs& a, const DecodeUnit& unit, char* shared) {
    const SparseRows& q = a.p.q_sparse;
    const int lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 32; row < kRows; row += C::kWarps) {
      for (int c = lane; c < C::kDqk; c += 32) Table::template put<C::kDqk>(shared, c, row, __float2bfloat16_rn(0.0f));
      __syncwarp();
      if (row >= unit.rows) continue;
      const int token = unit.token(a, row), head = unit.head(a, row);
      const auto* values = static_cast<const __nv_bfloat16*>(q.values) + unit.b * q.values_stride.batch +
                           token * q.values_stride.token + head * q.values_stride.head;
      const std::uint8_t* indices =
          q.support + unit.b * q.support_stride.batch + token * q.support_stride.token + head * q.support_stride.head;
      for (int n = lane; n < q.k; n += 32) Table::template put<C::kDqk>(shared, indices[n], row, values[n]);
    }
  }

  /// After the barrier behind prepare.
  __device__ __forceinline__ void start(const char* shared, char* mine) {
    table_ = shared;
    weights_ = mine;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      top_[r] = kNoMaximum;
      total_[r] = 0;
    }
  }

  /// Keys beyond `hi` are zeroes; those below `lo` are read, since pieces of 16 bytes may hold keys of both sides.
  __device__ __forceinline__ void load(char* stage, int t0, int, int hi) const {
    const int lane = threadIdx.x % 32, there = min(C::kTokens, hi - t0);
    copy(stage, values_ + std::int64_t{t0} * k_ * 2, C::kTokens * 2 * k_, there * 2 * k_, lane);
    copy(stage + C::kTokens * 2 * k_, support_ + std::int64_t{t0} * support_bytes_, C::kTokens * support_bytes_,
         there * support_bytes_, lane);
  }

  __device__ __forceinline__ void weigh(const char* stage, const char* scales, int t0, const UnitRanges& ranges,
                                        Weights (&weights)[C::kTokens / 16][C::kColumns],
                                        float (&o)[C::kDv / 16][C::kColumns][4]) {
    const int lane = threadIdx.x % 32;
    float s[kRows] = {};
    look_up(s, stage + lane * 2 * k_, stage + C::kTokens * 2 * k_ + lane * support_bytes_);
    const bool full = t0 >= ranges.full_lo && t0 + C::kTokens <= ranges.full_hi;
    bool higher = false;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      s[r] *= scale_;
      if (!full && (t0 + lane < ranges.lo[r] || t0 + lane >= ranges.hi[r])) s[r] = -INFINITY;
      higher = higher || s[r] > top_[r] + kLazyMaximum;
    }
    if (__any_sync(0xffffffffu, higher)) raise(s, o);
    float value_scale = 1.0f;
    if constexpr (C::kInt8) value_scale = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(scales)[lane]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float p = exp2_mufu(s[r] - top_[r]);
      total_[r] += p;
      *reinterpret_cast<__nv_bfloat16*>(weights_ + r * kWeightPitch + lane * 2) =
          __float2bfloat16_rn(C::kInt8 ? p * value_scale : p);
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < C::kColumns; ++n) {
      std::uint32_t b[4];
      load_matrices(b, weights_ + (n * 8 + (lane & 7)) * kWeightPitch + (lane >> 3) * 16);
      weights[0][n][0] = b[0], weights[0][n][1] = b[1], weights[1][n][0] = b[2], weights[1][n][1] = b[3];
    }
  }

  __device__ __forceinline__ void finish(float* maxima, float* totals) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float total = total_[r];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
      if (lane == 0) {
        maxima[r] = top_[r];
        totals[r] = total;
      }
    }
  }

 private:
  static __device__ __forceinline__ void copy(char* to, const char* from, int bytes, int there, int lane) {
    for (int at = lane * 16; at < bytes; at += 512) {
      const int left = min(max(there - at, 0), 16);
      copy_async(to + at, left > 0 ? from + at : from, left);
    }
  }

  __device__ __forceinline__ void look_up(float (&s)[kRows], const char* values, const char* support) const {
    const auto* mask = reinterpret_cast<const std::uint32_t*>(support);
    if (mask_words_ == 0)
      look_up_numbers(s, values, support);
    else if (mask_words_ <= 2)
      look_up_mask(s, values, ShortMask(mask, mask_words_));
    else
      look_up_mask(s, values, LongMask(mask, mask_words_));
  }

  /// In the widest pieces that rows of k values are made of.
  template <class Mask>
  __device__ __forceinline__ void look_up_mask(float (&s)[kRows], const char* values, Mask mask) const {
    if (k_ % 8 == 0)
      add_pieces<8>(s, values, mask);
    else if (k_ % 4 == 0)
      add_pieces<4>(s, values, mask);
    else if (k_ % 2 == 0)
      add_pieces<2>(s, values, mask);
    else
      add_pieces<1>(s, values, mask);
  }
  template <int N, class Mask>
  __device__ __forceinline__ void add_pieces(float (&s)[kRows], const char* values, Mask& mask) const {
    for (int n = 0; n < k_; n += N) {
      float x[N];
      sfa::load(x, reinterpret_cast<const __nv_bfloat16*>(values) + n);
#pragma unroll
      for (int i = 0; i < N; ++i) Table::template add<C::kDqk>(s, table_, mask.next(), x[i]);
    }
  }

  __device__ __forceinline__ void look_up_numbers(float (&s)[kRows], const char* values, const char* indices) const {
    if (k_ % 8 == 0) {
      for (int n = 0; n < k_; n += 8) {
        const uint4 x = *reinterpret_cast<const uint4*>(values + 2 * n);
        const uint2 f = *reinterpret_cast<const uint2*>(indices + n);
        add_four(s, x.x, x.y, f.x);
        add_four(s, x.z, x.w, f.y);
      }
    } else if (k_ % 4 == 0) {
      for (int n = 0; n < k_; n += 4) {
        const uint2 x = *reinterpret_cast<const uint2*>(values + 2 * n);
        add_four(s, x.x, x.y, *reinterpret_cast<const std::uint32_t*>(indices + n));
      }
    } else {
      for (int n = 0; n < k_; ++n)
        Table::template add<C::kDqk>(s, table_, *reinterpret_cast<const std::uint8_t*>(indices + n),
                                     __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(values + 2 * n)));
    }
  }
  __device__ __forceinline__ void add_four(float (&s)[kRows], std::uint32_t low, std::uint32_t high,
                                           std::uint32_t features) const {
    Table::template add<C::kDqk>(s, table_, features & 0xff, low_bf16(low));
    Table::template add<C::kDqk>(s, table_, features >> 8 & 0xff, high_bf16(low));
    Table::template add<C::kDqk>(s, table_, features >> 16 & 0xff, low_bf16(high));
    Table::template add<C::kDqk>(s, table_, features >> 24, high_bf16(high));
  }

  /// New maxima, the same in all lanes; sums so far are scaled to them. Column 2r + e of the sums is row n * 8 + 2r +
  /// e.
  __device__ __forceinline__ void raise(const float (&s)[kRows], float (&o)[C::kDv / 16][C::kColumns][4]) {
    float mine[C::kColumns][2];
#pragma unroll
    for (int n = 0; n < C::kColumns; ++n) mine[n][0] = mine[n][1] = 1.0f;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float top = fmaxf(top_[r], s[r]);
#pragma unroll
      for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
      const float factor = exp2_mufu(top_[r] - top);
      top_[r] = top;
      total_[r] *= factor;
      if (lane % 4 == r % 8 / 2) mine[r / 8][r % 2] = factor;
    }
#pragma unroll
    for (int d = 0; d < C::kDv / 16; ++d)
#pragma unroll
      for (int n = 0; n < C::kColumns; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) o[d][n][e] *= mine[n][e % 2];
  }

  const char *table_ = nullptr, *values_, *support_;
  char* weights_ = nullptr;
  int k_, mask_words_, support_bytes_;
  float scale_;
  float top_[kRows], total_[kRows];
};

}  // namespace sfa::flash
