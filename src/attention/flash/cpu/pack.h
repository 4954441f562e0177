// Packing of tiles: what the products read lies side by side, padded with zeros to whole vectors and whole tiles. Rows
// of a model's packed projection are thousands of bytes apart, which falls on few sets of a first-level cache; copies
// of them don't.
#pragma once

#include <immintrin.h>

#include "attention/flash/cpu/kernels.h"
#include "attention/flash/cpu/tuning.h"

namespace sfa::flash_cpu {

template <class V>
constexpr int padded(int features) {
  return (features + V::kLanes - 1) / V::kLanes * V::kLanes;
}

/// to[r][0 .. padded) = factor * from[r][0 .. features), then zeros.
template <class V>
void pack_rows(const float* from, std::int64_t stride, int rows, int features, float factor, float* to) {
  const int whole = features / V::kLanes * V::kLanes, width = padded<V>(features);
  const auto f = V::set(factor);
  const auto tail = V::range(0, features - whole);
  for (int r = 0; r < rows; ++r, from += stride, to += width) {
    for (int c = 0; c < whole; c += V::kLanes) V::store(to + c, V::mul(f, V::load(from + c)));
    if (whole < features) V::store(to + whole, V::mul(f, V::load_masked(tail, from + whole)));
  }
}

/// to[r][0 .. features) (+)= factor * from[r][0 .. features) of padded rows.
template <class V>
void unpack_rows(const float* from, int rows, int features, float factor, bool accumulate, float* to,
                 std::int64_t stride) {
  const int whole = features / V::kLanes * V::kLanes, width = padded<V>(features);
  const auto f = V::set(factor);
  const auto tail = V::range(0, features - whole);
  for (int r = 0; r < rows; ++r, from += width, to += stride) {
    for (int c = 0; c < whole; c += V::kLanes)
      V::store(to + c, accumulate ? V::fma(f, V::load(from + c), V::load(to + c)) : V::mul(f, V::load(from + c)));
    if (whole < features) {
      const auto x = V::load(from + whole);
      V::store_masked(tail, to + whole, accumulate ? V::fma(f, x, V::load_masked(tail, to + whole)) : V::mul(f, x));
    }
  }
}

/// 8 rows of 8 floats, transposed.
template <class V>
void transpose8(const float* from, std::int64_t stride, float* to, std::int64_t to_stride) {
  __m256 a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(from + i * stride);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    a[4 * i] = _mm256_shuffle_ps(b[4 * i], b[4 * i + 2], 0x44);
    a[4 * i + 1] = _mm256_shuffle_ps(b[4 * i], b[4 * i + 2], 0xee);
    a[4 * i + 2] = _mm256_shuffle_ps(b[4 * i + 1], b[4 * i + 3], 0x44);
    a[4 * i + 3] = _mm256_shuffle_ps(b[4 * i + 1], b[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
  }
}

/// to[c][r] = from[r][c] for `rows` <= kTileKeys rows; the columns behind them become zeros.
template <class V>
void pack_transposed(const float* from, std::int64_t stride, int rows, int features, float* to) {
  int r = 0;
  for (; r + 8 <= rows; r += 8) {
    int c = 0;
    for (; c + 8 <= features; c += 8) transpose8<V>(from + r * stride + c, stride, to + c * kTileKeys + r, kTileKeys);
    for (; c < features; ++c)
      for (int i = r; i < r + 8; ++i) to[c * kTileKeys + i] = from[i * stride + c];
  }
  if (r == kTileKeys) return;
  for (int c = 0; c < features; ++c) {
    for (int i = r; i < rows; ++i) to[c * kTileKeys + i] = from[i * stride + c];
    for (int i = rows; i < kTileKeys; ++i) to[c * kTileKeys + i] = 0.0f;
  }
}

/// A tile of sparse keys, feature-major: tile[feature][key]. The tile is all zeros before `scatter` and after `clear`.
template <class V>
struct SparseTile {
  static void scatter(const SparseRows& k, std::int64_t b, std::int64_t g, std::int64_t first, int keys, float* tile) {
    std::uint8_t room[256];
    for (int j = 0; j < keys; ++j) {
      const float* value = k.value_at(b, first + j, g);
      const std::uint8_t* index = k.numbers_at(b, first + j, g, room);
      for (int t = 0; t < k.active; ++t) tile[index[t] * kTileKeys + j] = value[t];
    }
  }
  static void clear(const SparseRows& k, std::int64_t b, std::int64_t g, std::int64_t first, int keys, float* tile) {
    std::uint8_t room[256];
    for (int j = 0; j < keys; ++j) {
      const std::uint8_t* index = k.numbers_at(b, first + j, g, room);
      for (int t = 0; t < k.active; ++t) tile[index[t] * kTileKeys + j] = 0.0f;
    }
  }
};

/// Sparse queries of one head: values times factor, and features as offsets into a feature-major tile.
template <class V>
void pack_sparse_queries(const SparseRows& q, std::int64_t b, std::int64_t h, std::int64_t first, int rows,
                         float factor, float* values, std::int32_t* offsets) {
  for (int r = 0; r < rows; ++r) {
    const float* value = q.value_at(b, first + r, h);
    const std::uint8_t* index = q.index_at(b, first + r, h);
    for (int t = 0; t < q.active; ++t) {
      values[r * q.active + t] = factor * value[t];
      offsets[r * q.active + t] = index[t] * kTileKeys;
    }
  }
}

template <class V>
void set_zero(float* to, std::int64_t n) {  // n a multiple of the vector
  for (std::int64_t i = 0; i < n; i += V::kLanes) V::store(to + i, V::zero());
}

/// First and last + 1 visible key of `rows` queries of batch entry b, as attention.h defines them; both arrays never
/// decrease.
template <class V>
void fill_spans(const Problem& p, std::int64_t b, std::int64_t first_query, int rows, std::int32_t* lo,
                std::int32_t* hi) {
  for (int r = 0; r < rows; ++r) {
    const std::int64_t place = first_query + r + p.query_offset;
    std::int64_t end = p.causal ? place + 1 : p.Tk;
    end = end < 0 ? 0 : (end > p.Tk ? p.Tk : end);
    std::int64_t begin = p.window > 0 && place + 1 > p.window ? place + 1 - p.window : 0;
    if (p.first_key) {
      const std::int64_t own = p.first_key[b * p.first_key_stride + first_query + r];
      begin = begin > own ? begin : own;
    }
    lo[r] = static_cast<std::int32_t>(begin < end ? begin : end);
    hi[r] = static_cast<std::int32_t>(end);
  }
}

template <class V>
float to_bf16(float x) {
  std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return x;
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return __builtin_bit_cast(float, bits & 0xffff0000u);
}

}  // namespace sfa::flash_cpu
