// Selection of features against its definition, evaluated by brute force: the result is exact, so every comparison is
// of bits.
#include "ops/select/select.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "support/compare.h"
#include "support/devices.h"
#include "support/selection.h"

namespace sfa::test {
namespace {

std::vector<std::uint32_t> bits(const std::vector<float>& values) {
  std::vector<std::uint32_t> out;
  for (float v : values) out.push_back(std::bit_cast<std::uint32_t>(v));
  return out;
}

// Rows of every nasty kind, `rows` of D features.
std::vector<float> nasty(std::int64_t rows, std::int64_t D) {
  std::vector<float> x = normal(rows * D, 1);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t d = 0; d < D; ++d) {
      float& v = x[static_cast<std::size_t>(r * D + d)];
      switch (r % 9) {
        case 0:
          break;  // ordinary
        case 1:
          v = 0.0f;
          break;  // all zero
        case 2:
          v = d % 2 ? -0.0f : 0.0f;
          break;  // zeros of both signs
        case 3:
          v = d % 3 ? 1.0f : -1.0f;
          break;  // one magnitude, both signs
        case 4:
          v = std::round(2.0f * v) / 2.0f;
          break;  // many ties
        case 5:
          v = d == D / 2 ? nan : (d == D - 1 ? -nan : v);
          break;  // NaN of both signs
        case 6:
          v = d == 0 ? -inf : (d == D - 1 ? inf : v);
          break;  // infinities
        case 7:
          v = d < D - 1 ? 0.0f : -3.0f;
          break;  // fewer non-zeros than k
        default:
          v *= std::numeric_limits<float>::denorm_min() * 64.0f;  // denormals
      }
    }
  return x;
}

class SelectTest : public DeviceTest {
 protected:
  // B x T x heads rows inside wider packed rows, as the projection leaves them.
  void check(std::int64_t D, std::int64_t k, bool two_of_four, bool in_place, DType type, bool pairs = false) {
    SCOPED_TRACE(::testing::Message() << "D " << D << ", k " << k << (two_of_four ? ", two of four" : "")
                                      << (pairs ? ", pairs" : "") << (in_place ? ", in place" : ""));
    const std::int64_t B = 2, T = 5, heads = 3, rows = B * T * heads, before_it = 7, row = before_it + heads * D + 4;
    std::vector<float> x = nasty(rows, D);
    if (type == DType::bf16) x = rounded(x);
    std::vector<float> packed(static_cast<std::size_t>(B * T * row), 42.0f);
    for (std::int64_t n = 0; n < B * T; ++n)
      for (std::int64_t i = 0; i < heads * D; ++i)
        packed[static_cast<std::size_t>(n * row + before_it + i)] = x[static_cast<std::size_t>(n * heads * D + i)];
    const Tensor buffer = pool.floats(packed, {B, T, row}, type);
    const Tensor view = buffer.slice(2, before_it, heads * D).split_last(heads);
    const Tensor values = pool.poisoned(type, {B, T, heads, k}), indices = pool.poisoned(DType::u8, {B, T, heads, k});
    const Tensor dense = in_place ? view : pool.poisoned(type, {B, T, heads, D});
    select_topk(ctx, {view, k, two_of_four, values, indices, dense, pairs});

    std::vector<std::uint8_t> want_indices;
    std::vector<float> want_values, want_dense(x.size());
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::vector<float> one(x.begin() + r * D, x.begin() + (r + 1) * D);
      for (std::uint8_t d : pairs ? selected_pairs(one, k) : selected_features(one, k, two_of_four)) {
        want_indices.push_back(d);
        want_values.push_back(one[d]);
        want_dense[static_cast<std::size_t>(r * D + d)] = one[d];
      }
    }
    EXPECT_EQ(elements<std::uint8_t>(ctx, indices), want_indices);
    // bf16 has one NaN after rounding, so bits are compared in f32 alone.
    const auto same = [&](const Tensor& got, const std::vector<float>& want) {
      const auto a = values_of(ctx, got);
      for (std::size_t i = 0; i < want.size(); ++i) {
        if (std::isnan(want[i]))
          ASSERT_TRUE(std::isnan(a[i])) << i;
        else
          ASSERT_EQ(bits({a[i]}), bits({want[i]})) << i;
      }
    };
    same(values, want_values);
    same(dense, want_dense);
    for (std::int64_t n = 0; n < B * T; ++n) {  // what lies beside the heads is not touched
      const auto around = values_of(ctx, buffer.view({B * T, row}).slice(0, n, 1));
      for (std::int64_t i : {std::int64_t{0}, before_it - 1, before_it + heads * D, row - 1})
        ASSERT_EQ(around[static_cast<std::size_t>(i)], 42.0f);
    }
  }
};

TEST_P(SelectTest, IsTheDefinition) {
  for (const std::int64_t D : {1, 4, 7, 16, 32, 64, 96, 128, 192, 256})
    for (const std::int64_t k : {1, 2, 3, 8, 16, 31, 64, 128})
      if (k <= D)
        for (const bool in_place : {false, true}) check(D, k, false, in_place, DType::f32);
}

TEST_P(SelectTest, TwoOfFourIsTheGreedyDefinition) {
  for (const std::int64_t D : {4, 8, 16, 64, 128, 256})
    for (const std::int64_t k : {1, 2, 4, 8, 16, 32, 64, 128})
      if (k <= D / 2)
        for (const bool in_place : {false, true}) check(D, k, true, in_place, DType::f32);
}

TEST_P(SelectTest, Bf16OnAGpu) {
  if (!ctx.on_cuda()) GTEST_SKIP() << "the CPU keeps f32 tensors; rounded values are covered by the f32 cases";
  for (const std::int64_t D : {7, 64, 128, 256})
    for (const std::int64_t k : {1, 4, 8, 16}) {
      if (k > D) continue;
      check(D, k, false, true, DType::bf16);
      if (D % 4 == 0 && k <= D / 2) check(D, k, true, false, DType::bf16);
    }
}

TEST_P(SelectTest, WithoutDenseRows) {
  const std::int64_t D = 12, k = 3, rows = 6;
  const auto x = normal(rows * D, 3);
  const Tensor values = pool.poisoned(DType::f32, {1, rows, 1, k}), indices = pool.poisoned(DType::u8, {1, rows, 1, k});
  const Tensor from = pool.floats(x, {1, rows, 1, D});
  select_topk(ctx, {from, k, false, values, indices, Tensor{}});
  const auto got = elements<std::uint8_t>(ctx, indices);
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::vector<float> one(x.begin() + r * D, x.begin() + (r + 1) * D);
    EXPECT_EQ(std::vector<std::uint8_t>(got.begin() + r * k, got.begin() + (r + 1) * k),
              selected_features(one, k, false));
  }
  EXPECT_EQ(values_of(ctx, from), x) << "the input was changed";
}

TEST_P(SelectTest, ExpandUndoesSelection) {
  for (const std::int64_t D : {5, 64, 256}) {
    const std::int64_t B = 2, T = 4, heads = 3, k = std::min<std::int64_t>(D, 8), capacity = 9;
    const Tensor x = pool.floats(nasty(B * T * heads, D), {B, T, heads, D}),
                 dense = pool.poisoned(DType::f32, {B, T, heads, D}),
                 back = pool.poisoned(DType::f32, {B, T, heads, D});
    // As a KV cache holds them: batch entries lie further apart than T tokens.
    const Tensor values = pool.zeros(DType::f32, {B, T, heads, k}), indices = pool.zeros(DType::u8, {B, T, heads, k});
    const Tensor cached_values = pool.poisoned(DType::f32, {B, capacity, heads, k}),
                 cached_indices = pool.poisoned(DType::u8, {B, capacity, heads, k});
    select_topk(ctx, {x, k, false, values, indices, dense});
    for (std::int64_t b = 0; b < B; ++b) {
      const auto move = [&](const Tensor& to, const Tensor& from) {
        const Tensor target = to.slice(0, b, 1).slice(1, 0, T), source = from.slice(0, b, 1);
        ctx.copy(target.data, target.device, source.data, source.device, static_cast<std::size_t>(source.bytes()));
      };
      move(cached_values, values);
      move(cached_indices, indices);
    }
    select_expand(ctx, cached_values.slice(1, 0, T), cached_indices.slice(1, 0, T), back);
    EXPECT_EQ(bits(values_of(ctx, back)), bits(values_of(ctx, dense)));
  }
}

TEST_P(SelectTest, GradientsOutsideTheSupportBecomeZero) {
  for (const std::int64_t D : {3, 32, 129, 256}) {
    const std::int64_t B = 2, T = 3, heads = 2, k = std::min<std::int64_t>(D, 5), row = heads * D + 6;
    const Tensor x = pool.floats(normal(B * T * heads * D, 1), {B, T, heads, D});
    const Tensor values = pool.zeros(DType::f32, {B, T, heads, k}), indices = pool.zeros(DType::u8, {B, T, heads, k});
    select_topk(ctx, {x, k, false, values, indices, Tensor{}});
    const auto g = normal(B * T * row, 2);
    const Tensor buffer = pool.floats(g, {B, T, row});
    select_mask_gradient(ctx, buffer.slice(2, 6, heads * D).split_last(heads), indices);
    const auto got = values_of(ctx, buffer);
    const auto support = elements<std::uint8_t>(ctx, indices);
    for (std::int64_t n = 0; n < B * T; ++n)
      for (std::int64_t c = 0; c < row; ++c) {
        bool keep = c < 6;
        if (!keep) {
          const std::int64_t h = (c - 6) / D, d = (c - 6) % D;
          for (std::int64_t i = 0; i < k; ++i)
            keep = keep || support[static_cast<std::size_t>((n * heads + h) * k + i)] == d;
        }
        ASSERT_EQ(got[static_cast<std::size_t>(n * row + c)], keep ? g[static_cast<std::size_t>(n * row + c)] : 0.0f);
      }
  }
}

TEST_P(SelectTest, WholePairs) {
  for (const DType type : {DType::f32, DType::bf16}) {
    if (type == DType::bf16 && GetParam() == Device::cpu) continue;
    for (const std::int64_t D : {2, 6, 16, 30, 64, 128, 200, 256})
      for (const std::int64_t k : {2, 4, 8, 16, 62})
        for (const bool in_place : {false, true})
          if (k <= D) check(D, k, false, in_place, type, true);
  }
}

TEST_P(SelectTest, TheSupportOfPairsDoesNotTurnWithPosition) {
  // Rotations as rotary embedding makes them: the norms of pairs stay what they were up to rounding, and no two of a
  // row are that close here.
  const std::int64_t D = 64, k = 16, T = 50;
  const auto head = normal(D, 3);
  std::vector<float> x;
  for (std::int64_t t = 0; t < T; ++t)
    for (std::int64_t d = 0; d < D; ++d) {
      const std::int64_t i = d % (D / 2);
      const double angle =
          static_cast<double>(t) * std::pow(1e4, -2.0 * static_cast<double>(i) / static_cast<double>(D));
      const double low = head[static_cast<std::size_t>(i)], high = head[static_cast<std::size_t>(i + D / 2)];
      x.push_back(static_cast<float>(d < D / 2 ? low * std::cos(angle) - high * std::sin(angle)
                                               : high * std::cos(angle) + low * std::sin(angle)));
    }
  const Tensor values = pool.zeros(DType::f32, {1, T, 1, k});
  const auto supports = [&](bool pairs) {
    const Tensor indices = pool.zeros(DType::u8, {1, T, 1, k});
    select_topk(ctx, {pool.floats(x, {1, T, 1, D}), k, false, values, indices, Tensor{}, pairs});
    return elements<std::uint8_t>(ctx, indices);
  };
  const auto by_pair = supports(true), by_feature = supports(false);
  std::int64_t turned = 0;
  for (std::int64_t t = 1; t < T; ++t) {
    EXPECT_TRUE(std::equal(by_pair.begin(), by_pair.begin() + k, by_pair.begin() + t * k)) << t;
    turned += !std::equal(by_feature.begin(), by_feature.begin() + k, by_feature.begin() + t * k);
  }
  EXPECT_GT(turned, T / 2) << "single features do turn";
}

TEST_P(SelectTest, ImpossibleRequestsAreRefused) {
  const auto attempt = [&](std::int64_t D, std::int64_t k, bool two_of_four, bool pairs = false) {
    const Tensor x = pool.zeros(DType::f32, {1, 1, 1, D}), values = pool.zeros(DType::f32, {1, 1, 1, k}),
                 indices = pool.zeros(DType::u8, {1, 1, 1, k});
    select_topk(ctx, {x, k, two_of_four, values, indices, Tensor{}, pairs});
  };
  EXPECT_THROW(attempt(8, 9, false), Error);
  EXPECT_THROW(attempt(257, 8, false), Error);
  EXPECT_THROW(attempt(8, 5, true), Error);
  EXPECT_THROW(attempt(6, 2, true), Error);
  EXPECT_THROW(attempt(8, 3, false, true), Error);
  EXPECT_THROW(attempt(7, 2, false, true), Error);
  EXPECT_THROW(attempt(8, 2, true, true), Error);
}

SFA_ON_EVERY_DEVICE(SelectTest);

}  // namespace
}  // namespace sfa::test
