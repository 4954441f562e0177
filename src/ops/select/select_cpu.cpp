// Selection of one row: magnitudes are compared as integers (the bits of |x| order like |x|, NaN above infinity).
//   topk       the largest threshold that at least k magnitudes reach is found by bisection of the integers between a
//   guess and the
//              maximum, ended early by one that exactly k reach; of several equal to it the lowest indices are taken.
//   topk_2of4  greedy, over the sorted row.
//   topk_pairs topk of the pairs' norms.
#include "ops/select/select_cpu.h"

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace sfa::cpu_ops {
namespace {

constexpr int kLanes = 8;

// One row's magnitudes, padded with -1, and the chosen features as bits.
struct Row {
  alignas(32) std::array<std::int32_t, 256> magnitudes;
  std::array<std::uint32_t, 8> chosen;  // feature d is bit d % 32 of word d / 32
  int vectors;
};

__m256i load(const Row& row, int v) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(row.magnitudes.data() + v * kLanes));
}

std::uint32_t bits_of(__m256i mask) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(mask)));
}

// Returns the largest magnitude.
std::int32_t load_magnitudes(Row& row, const float* x, std::int64_t D) {
  row.vectors = static_cast<int>((D + kLanes - 1) / kLanes);
  __m256i top = _mm256_set1_epi32(-1);
  const __m256i sign_cleared = _mm256_set1_epi32(0x7fffffff);
  for (int v = 0; v < row.vectors; ++v) {
    const std::int64_t left = D - v * kLanes;
    __m256i m;
    if (left >= kLanes) {
      m = _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + v * kLanes)), sign_cleared);
    } else {
      alignas(32) std::array<std::int32_t, kLanes> tail;
      for (std::int64_t i = 0; i < kLanes; ++i)
        tail[static_cast<std::size_t>(i)] = i < left ? std::bit_cast<std::int32_t>(x[v * kLanes + i]) & 0x7fffffff : -1;
      m = _mm256_load_si256(reinterpret_cast<const __m256i*>(tail.data()));
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(row.magnitudes.data() + v * kLanes), m);
    top = _mm256_max_epi32(top, m);
  }
  alignas(32) std::array<std::int32_t, kLanes> tops;
  _mm256_store_si256(reinterpret_cast<__m256i*>(tops.data()), top);
  return *std::max_element(tops.begin(), tops.end());
}

// Magnitudes above `threshold`.
int count_above(const Row& row, std::int32_t threshold) {
  const __m256i t = _mm256_set1_epi32(threshold);
  int n = 0;
  for (int v = 0; v < row.vectors; ++v) n += std::popcount(bits_of(_mm256_cmpgt_epi32(load(row, v), t)));
  return n;
}

void choose_topk(Row& row, const float* x, std::int64_t D, std::int64_t k) {
  const std::int32_t top = load_magnitudes(row, x, D);
  // More than `low` are at least k, more than `high` fewer than k. Most rows have their k largest within a factor
  // of 64.
  std::int64_t low = -1, high = top;
  constexpr std::int64_t kSixPowersOfTwo = 6 << 23;
  int above = -1;
  for (std::int64_t middle = top - kSixPowersOfTwo; high - low > 1; middle = low + (high - low) / 2) {
    if (middle <= low) middle = low + (high - low) / 2;
    above = count_above(row, static_cast<std::int32_t>(middle));
    if (above >= k)
      low = middle;
    else
      high = middle;
    if (above == k) break;
  }
  row.chosen.fill(0);
  const bool exact = above == k;
  const __m256i over = _mm256_set1_epi32(static_cast<std::int32_t>(exact ? low : high)),
                equal = _mm256_set1_epi32(static_cast<std::int32_t>(high));
  std::int64_t taken = 0;
  const auto set = [&](int v, std::uint32_t bits) {
    row.chosen[static_cast<std::size_t>(v / 4)] |= bits << (v % 4 * kLanes);
    taken += std::popcount(bits);
  };
  for (int v = 0; v < row.vectors; ++v) set(v, bits_of(_mm256_cmpgt_epi32(load(row, v), over)));
  if (exact) return;
  // Several are equal at the threshold, which is high: the lowest indices among them fill up.
  for (int v = 0; v < row.vectors && taken < k; ++v)
    for (std::uint32_t bits = bits_of(_mm256_cmpeq_epi32(load(row, v), equal)); bits != 0 && taken < k;
         bits &= bits - 1)
      set(v, bits & (0u - bits));
}

void choose_two_of_four(Row& row, const float* x, std::int64_t D, std::int64_t k) {
  std::array<std::uint64_t, 256> keys;  // magnitude, and below it the complemented index, which breaks ties
  for (std::int64_t d = 0; d < D; ++d)
    keys[static_cast<std::size_t>(d)] =
        std::uint64_t{std::bit_cast<std::uint32_t>(x[d]) & 0x7fffffffu} << 8 | static_cast<std::uint64_t>(255 - d);
  std::sort(keys.begin(), keys.begin() + D, std::greater<>());
  row.chosen.fill(0);
  std::array<std::uint8_t, 64> in_group{};
  std::int64_t taken = 0;
  for (auto key = keys.begin(); taken < k; ++key) {
    const std::size_t d = 255 - (*key & 0xff);
    if (in_group[d / 4] == 2) continue;
    ++in_group[d / 4];
    row.chosen[d / 32] |= 1u << (d % 32);
    ++taken;
  }
}

void choose_pairs(Row& row, const float* x, std::int64_t D, std::int64_t k) {
  const std::int64_t half = D / 2;
  std::array<float, 128> norms;
  for (std::int64_t i = 0; i < half; ++i) {
    const float norm = std::fma(x[i], x[i], x[i + half] * x[i + half]);
    // Which of two NaN is larger must not depend on what the processor makes of their bits.
    norms[static_cast<std::size_t>(i)] = std::isnan(norm) ? std::numeric_limits<float>::quiet_NaN() : norm;
  }
  choose_topk(row, norms.data(), half, k / 2);
  // The second half's features are the first half's, moved up.
  for (std::int64_t i = 0; i < half; ++i) {
    const std::int64_t d = i + half;
    if (row.chosen[static_cast<std::size_t>(i / 32)] >> (i % 32) & 1u)
      row.chosen[static_cast<std::size_t>(d / 32)] |= 1u << (d % 32);
  }
}

void choose(Row& row, const Select& args, const float* x) {
  const std::int64_t D = args.x.dim(3);
  if (args.pairs) return choose_pairs(row, x, D, args.k);
  args.two_of_four ? choose_two_of_four(row, x, D, args.k) : choose_topk(row, x, D, args.k);
}

// The chosen features in ascending order.
void write(const Row& row, const float* x, float* values, std::uint8_t* indices) {
  std::int64_t n = 0;
  for (std::size_t word = 0; word < row.chosen.size(); ++word)
    for (std::uint32_t bits = row.chosen[word]; bits != 0; bits &= bits - 1, ++n) {
      const std::size_t d = 32 * word + static_cast<std::size_t>(std::countr_zero(bits));
      values[n] = x[d];
      indices[n] = static_cast<std::uint8_t>(d);
    }
}

}  // namespace

void select_topk(Context&, const Select& args) {
  const std::int64_t B = args.x.dim(0), T = args.x.dim(1), heads = args.x.dim(2), D = args.x.dim(3), k = args.k;
  const Tensor &x = args.x, &dense = args.dense;
  const float* in = x.as<float>();
  float* values = args.values.as<float>();
  std::uint8_t* indices = args.indices.as<std::uint8_t>();
  float* out = dense.empty() ? nullptr : dense.as<float>();
#pragma omp parallel for collapse(2) schedule(static)
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < T; ++t) {
      Row row;
      for (std::int64_t h = 0; h < heads; ++h) {
        const float* from = in + b * x.stride[0] + t * x.stride[1] + h * x.stride[2];
        choose(row, args, from);
        const std::int64_t at = ((b * T + t) * heads + h) * k;
        write(row, from, values + at, indices + at);
        if (!out) continue;
        float* full = out + b * dense.stride[0] + t * dense.stride[1] + h * dense.stride[2];  // may be `from` itself
        std::fill_n(full, D, 0.0f);
        for (std::int64_t n = at; n < at + k; ++n) full[indices[n]] = values[n];
      }
    }
}

void select_mask_gradient(Context&, const Tensor& d_x, const Tensor& indices) {
  const std::int64_t B = d_x.dim(0), T = d_x.dim(1), heads = d_x.dim(2), D = d_x.dim(3), k = indices.dim(3);
  float* g = d_x.as<float>();
  const std::uint8_t* support = indices.as<std::uint8_t>();
#pragma omp parallel for collapse(2) schedule(static)
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t h = 0; h < heads; ++h) {
        float* row = g + b * d_x.stride[0] + t * d_x.stride[1] + h * d_x.stride[2];
        const std::uint8_t* own = support + ((b * T + t) * heads + h) * k;
        std::int64_t n = 0;
        for (std::int64_t d = 0; d < D; ++d) {
          if (n < k && own[n] == d)
            ++n;
          else
            row[d] = 0.0f;
        }
      }
}

void select_expand(Context&, const Tensor& values, const Tensor& indices, const Tensor& dense) {
  const std::int64_t B = dense.dim(0), T = dense.dim(1), heads = dense.dim(2), D = dense.dim(3), k = values.dim(3);
  const float* from = values.as<float>();
  const std::uint8_t* support = indices.as<std::uint8_t>();
  float* out = dense.as<float>();
#pragma omp parallel for collapse(2) schedule(static)
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t h = 0; h < heads; ++h) {
        float* row = out + b * dense.stride[0] + t * dense.stride[1] + h * dense.stride[2];
        std::fill_n(row, D, 0.0f);
        const std::int64_t v = b * values.stride[0] + t * values.stride[1] + h * values.stride[2];
        const std::int64_t i = b * indices.stride[0] + t * indices.stride[1] + h * indices.stride[2];
        for (std::int64_t n = 0; n < k; ++n) row[support[i + n]] = from[v + n];
      }
}

}  // namespace sfa::cpu_ops
