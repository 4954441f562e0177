// The load balance of kept features: its gradient against differences of the formula and against the formula in double,
// on rows that lie within wider ones.
#include "ops/balance/balance.h"

#include <gtest/gtest.h>

#include <bit>

#include "ops/select/select.h"
#include "support/balance.h"
#include "support/compare.h"
#include "support/devices.h"
#include "support/oracle.h"

namespace sfa::test {
namespace {

class BalanceTest : public DeviceTest {
 protected:
  struct Shape {
    std::int64_t B, T, heads, D, k, wide;  // `wide`: elements of a token's row, of which the heads are the first
  };

  // Rows of every head with features of their own size, so that some are kept more often than others.
  static std::vector<float> rows_of(const Shape& s) {
    std::vector<float> rows = normal(s.B * s.T * s.wide, 1);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] *= 0.3f + static_cast<float>(i % 7);
    return rows;
  }
  Tensor heads_of(const Tensor& rows, const Shape& s) const {
    return rows.slice(2, 0, s.heads * s.D).split_last(s.heads);
  }

  void check(const Shape& s, DType type) {
    SCOPED_TRACE(::testing::Message() << s.B << " x " << s.T << " x " << s.heads << " x " << s.D << " k " << s.k
                                      << " in rows of " << s.wide << " " << name_of(type));
    auto values = rows_of(s), before = normal(s.B * s.T * s.wide, 2, 1e-2f);
    if (type == DType::bf16) {
      values = rounded(values);
      before = rounded(before);
    }
    std::fill_n(values.begin(), s.D, 0.0f);  // the first head's first row
    const Tensor rows = pool.floats(values, {s.B, s.T, s.wide}, type),
                 d_rows = pool.floats(before, {s.B, s.T, s.wide}, type),
                 kept = pool.zeros(type, {s.B, s.T, s.heads, s.k}),
                 indices = pool.zeros(DType::u8, {s.B, s.T, s.heads, s.k});
    const Tensor x = heads_of(rows, s), d_x = heads_of(d_rows, s),
                 total = pool.integers(std::vector<std::int64_t>{std::bit_cast<std::int64_t>(0.5)}, {1});
    select_topk(ctx, {.x = x, .k = s.k, .values = kept, .indices = indices, .dense = {}});
    const BalanceCase c{
        s.B * s.T, s.heads, s.D, s.k, as<double>(values_of(ctx, x)), elements<std::uint8_t>(ctx, indices)};
    const float scale = 0.125f;
    for (int times = 0; times < 2; ++times)
      run_planned(ctx, [&](Context& on, Arena& scratch) {
        balance_backward(on, {x, indices, scale, d_x, total, scratch});
      });
    const auto gradient = balance_gradient(c);
    const auto got = values_of(ctx, d_rows);
    std::vector<double> want = as<double>(before);
    for (std::int64_t n = 0; n < s.B * s.T; ++n)
      for (std::int64_t i = 0; i < s.heads * s.D; ++i)
        want[static_cast<std::size_t>(n * s.wide + i)] +=
            2 * static_cast<double>(scale) * gradient[static_cast<std::size_t>(n * s.heads * s.D + i)];
    // Two roundings of the sum in bf16; in f32 sums of D terms.
    EXPECT_TRUE(near_in_norm(got, want, type == DType::bf16 ? 0x1p-8 : 1e-6));
    for (std::int64_t n = 0; n < s.B * s.T; ++n)
      for (std::int64_t i = s.heads * s.D; i < s.wide; ++i) {
        const auto at = static_cast<std::size_t>(n * s.wide + i);
        ASSERT_EQ(got[at], before[at]) << "beside the heads";
      }
    const double want_total = 0.5 + 2 * balance_total(c, kept_shares(c));
    EXPECT_NEAR(std::bit_cast<double>(elements<std::int64_t>(ctx, total).at(0)), want_total, 1e-6 * want_total);
  }
};

TEST(BalanceFormula, TheGradientIsTheDerivativeWithTheSharesHeldFixed) {
  BalanceCase c{.R = 5, .heads = 2, .D = 6, .k = 2};
  c.x = as<double>(normal(c.R * c.heads * c.D, 1));
  for (std::int64_t i = 0; i < c.R * c.heads * c.k; ++i)
    c.kept.push_back(static_cast<std::uint8_t>(i * i % 3 + i % 2 * 3));
  const auto f = kept_shares(c);
  const auto value = [&](const std::vector<double>& x) {
    BalanceCase at = c;
    at.x = x;
    return balance_total(at, f);
  };
  EXPECT_TRUE(near_in_norm(balance_gradient(c), numeric_gradient(value, c.x), 1e-7));
}

TEST(BalanceFormula, IsOneWhereAllFeaturesAreKeptAlike) {
  BalanceCase c{.R = 4, .heads = 1, .D = 8, .k = 2};
  c.x = as<double>(normal(c.R * c.D, 1));
  for (std::int64_t i = 0; i < c.R * c.k; ++i) c.kept.push_back(static_cast<std::uint8_t>(i));
  EXPECT_NEAR(balance_total(c, kept_shares(c)) / 4, 1, 1e-12);
}

TEST_P(BalanceTest, IsTheFormulaOnRowsOfAnyWidth) {
  for (const Shape& s : {Shape{1, 1, 1, 4, 1, 4}, Shape{2, 9, 3, 12, 4, 40}, Shape{2, 40, 4, 64, 8, 320},
                         Shape{1, 600, 2, 128, 16, 384}, Shape{1, 33, 2, 256, 8, 512}, Shape{2, 21, 3, 20, 5, 61},
                         Shape{1, 50, 2, 64, 8, 131}, Shape{3, 7, 1, 96, 12, 104}})
    for (const DType type : {DType::f32, DType::bf16})
      if (type == DType::f32 || ctx.on_cuda()) check(s, type);
}

TEST_P(BalanceTest, TwoRunsGiveTheSameBits) {
  const Shape s{2, 700, 3, 64, 8, 192};
  std::vector<float> first;
  for (int run = 0; run < 2; ++run) {
    const Tensor x = heads_of(pool.floats(rows_of(s), {s.B, s.T, s.wide}), s),
                 d_x = pool.zeros(DType::f32, {s.B, s.T, s.heads, s.D}),
                 kept = pool.zeros(DType::f32, {s.B, s.T, s.heads, s.k}),
                 indices = pool.zeros(DType::u8, {s.B, s.T, s.heads, s.k});
    select_topk(ctx, {.x = x, .k = s.k, .values = kept, .indices = indices, .dense = {}});
    run_planned(ctx, [&](Context& on, Arena& scratch) { balance_backward(on, {x, indices, 0.5f, d_x, {}, scratch}); });
    const auto now = values_of(ctx, d_x);
    if (run == 0) first = now;
    EXPECT_EQ(now, first);
  }
}

SFA_ON_EVERY_DEVICE(BalanceTest);

TEST(BalanceRounding, StoresBf16) {
  Context ctx(Device::cpu);
  ctx.round_bf16 = true;
  Pool pool(ctx);
  const Tensor x = pool.floats(rounded(normal(3 * 8, 1)), {1, 3, 1, 8}),
               d_x = pool.floats(rounded(normal(3 * 8, 2)), {1, 3, 1, 8}),
               indices = pool.integers(std::vector<std::uint8_t>{0, 1, 2}, {1, 3, 1, 1});
  run_planned(ctx, [&](Context& on, Arena& scratch) { balance_backward(on, {x, indices, 0.3f, d_x, {}, scratch}); });
  EXPECT_TRUE(all_bf16(values_of(ctx, d_x)));
}

}  // namespace
}  // namespace sfa::test
