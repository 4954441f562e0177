// Head-wise RMS norm + rotary embedding against the formula in double, which is itself held against central
// differences.
#include "ops/qk_norm_rope/qk_norm_rope.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/devices.h"
#include "support/oracle_qwen3.h"

namespace sfa::test {
namespace {

using Shape = oracle::HeadsShape;
constexpr float kEps = 1e-6f;
constexpr double kTheta = 1e4;
const Shape kShapes[] = {{1, 1, 1, 1, 2, 2, kTheta, 0},      {2, 5, 4, 2, 8, 8, kTheta, 0},
                         {1, 37, 3, 1, 6, 10, kTheta, 3},    {3, 4, 2, 2, 64, 32, 1e6, 100},
                         {2, 33, 4, 2, 128, 128, 1e6, 0},    {1, 9, 5, 5, 30, 1, kTheta, 7},
                         {1, 3, 16, 8, 128, 128, 1e6, 4000}, {1, 70, 2, 1, 256, 64, 1e6, 0},
                         {2, 3, 6, 3, 96, 64, 1e6, 1},       {1, 2, 1, 1, 16, 0, kTheta, 131069}};

std::string name_of(const Shape& s) {
  return fmt::format("B {} T {} H {} G {} D {} Dv {} first {}", s.B, s.T, s.H, s.G, s.D, s.Dv, s.first_position);
}

TEST(QkNormRopeFormula, BackwardIsTheDerivativeOfForward) {
  const Shape s{2, 3, 2, 1, 6, 4, 100.0, 2};
  const std::int64_t n = s.B * s.T * s.row();
  const auto x = as<double>(normal(n, 1)), wq = as<double>(normal(s.D, 2)), wk = as<double>(normal(s.D, 3)),
             d_y = as<double>(normal(n, 4));
  const auto value = [&](const auto& at, const auto& a, const auto& b) {
    return dot(oracle::qk_norm_rope(s, at, a, b, 1e-6).y, d_y);
  };
  const auto g = oracle::qk_norm_rope_backward(s, d_y, x, wq, wk, 1e-6);
  EXPECT_TRUE(near_in_norm(g.x, numeric_gradient([&](const auto& a) { return value(a, wq, wk); }, x), 1e-8));
  EXPECT_TRUE(near_in_norm(g.q_weight, numeric_gradient([&](const auto& a) { return value(x, a, wk); }, wq), 1e-8));
  EXPECT_TRUE(near_in_norm(g.k_weight, numeric_gradient([&](const auto& a) { return value(x, wq, a); }, wk), 1e-8));
}

TEST(QkNormRopeFormula, ScoresDependOnDistanceAlone) {
  // What rotary embedding is for: the same query and key four places apart score the same anywhere.
  const Shape s{1, 9, 1, 1, 16, 2, kTheta, 0};
  const auto head = as<double>(normal(16, 1)), key = as<double>(normal(16, 2));
  std::vector<double> x;
  for (std::int64_t t = 0; t < s.T; ++t) {
    x.insert(x.end(), head.begin(), head.end());
    x.insert(x.end(), key.begin(), key.end());
    x.insert(x.end(), {0.0, 0.0});
  }
  const auto y = oracle::qk_norm_rope(s, x, head, key, 1e-6).y;
  const auto score = [&](std::int64_t i, std::int64_t j) {
    double sum = 0;
    for (std::int64_t d = 0; d < s.D; ++d)
      sum += y[static_cast<std::size_t>(i * s.row() + d)] * y[static_cast<std::size_t>(j * s.row() + s.D + d)];
    return sum;
  };
  EXPECT_NEAR(score(4, 0), score(8, 4), 1e-12);
  EXPECT_GT(std::fabs(score(4, 0) - score(4, 1)), 1e-3);
}

class QkNormRopeOp : public DeviceTest {
 protected:
  struct Inputs {
    std::vector<float> x, wq, wk, d_y;
    explicit Inputs(const Shape& s)
        : x(normal(s.B * s.T * s.row(), 1, 2.0f)),
          wq(normal(s.D, 2)),
          wk(normal(s.D, 3)),
          d_y(normal(s.B * s.T * s.row(), 4)) {}
  };
  QkNormRope forward_of(const Shape& s, const Inputs& in) {
    return {.x = pool.floats(in.x, {s.B, s.T, s.row()}),
            .H = s.H,
            .G = s.G,
            .D = s.D,
            .q_weight = pool.floats(in.wq, {s.D}),
            .k_weight = pool.floats(in.wk, {s.D}),
            .eps = kEps,
            .theta = s.theta,
            .first_position = s.first_position,
            .y = pool.poisoned(DType::f32, {s.B, s.T, s.row()}),
            .rstd = pool.poisoned(DType::f32, {s.B * s.T, s.heads()})};
  }
};

TEST_P(QkNormRopeOp, ForwardIsTheFormula) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(name_of(s));
    const Inputs in(s);
    const auto exact = oracle::qk_norm_rope(s, as<double>(in.x), as<double>(in.wq), as<double>(in.wk), 1e-6);
    const auto naive = oracle::qk_norm_rope(s, in.x, in.wq, in.wk, kEps);
    QkNormRope args = forward_of(s, in);
    qk_norm_rope_forward(ctx, args);
    const auto y = values_of(ctx, args.y);
    EXPECT_TRUE(near_in_norm(y, exact.y, derived_tolerance(naive.y, exact.y)));
    EXPECT_TRUE(near_in_norm(values_of(ctx, args.rstd), exact.rstd, derived_tolerance(naive.rstd, exact.rstd)));
    EXPECT_EQ(values_of(ctx, args.x), in.x);
    // Without the v heads, and in place without rstd: the same bits.
    args.y = pool.poisoned(DType::f32, {s.B, s.T, s.heads() * s.D});
    qk_norm_rope_forward(ctx, args);
    std::vector<float> want;
    for (std::int64_t n = 0; n < s.B * s.T; ++n)
      want.insert(want.end(), y.begin() + n * s.row(), y.begin() + n * s.row() + s.heads() * s.D);
    EXPECT_EQ(values_of(ctx, args.y), want);
    args.y = args.x;
    args.rstd = {};
    qk_norm_rope_forward(ctx, args);
    EXPECT_EQ(values_of(ctx, args.x), y);
  }
}

TEST_P(QkNormRopeOp, BackwardIsTheFormulaAccumulatesWeightsAndOverwritesActivations) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(name_of(s));
    const Inputs in(s);
    const auto exact = oracle::qk_norm_rope_backward(s, as<double>(in.d_y), as<double>(in.x), as<double>(in.wq),
                                                     as<double>(in.wk), 1e-6);
    const auto naive = oracle::qk_norm_rope_backward(s, in.d_y, in.x, in.wq, in.wk, kEps);
    const QkNormRope f = forward_of(s, in);
    qk_norm_rope_forward(ctx, f);
    const auto ones = std::vector<float>(in.wq.size(), 1.5f);
    const Tensor d_wq = pool.floats(ones, {s.D}), d_wk = pool.floats(ones, {s.D}),
                 d_y = pool.floats(in.d_y, {s.B, s.T, s.row()});
    // Twice: into memory of its own, then over d_y.
    for (int times = 1; times <= 2; ++times) {
      const Tensor d_x = times == 1 ? pool.poisoned(DType::f32, {s.B, s.T, s.row()}) : d_y;
      run_planned(ctx, [&](Context& on, Arena& scratch) {
        qk_norm_rope_backward(on, {.d_y = d_y,
                                   .x = f.x,
                                   .H = s.H,
                                   .G = s.G,
                                   .D = s.D,
                                   .q_weight = f.q_weight,
                                   .k_weight = f.k_weight,
                                   .theta = s.theta,
                                   .rstd = f.rstd,
                                   .d_x = d_x,
                                   .d_q_weight = d_wq,
                                   .d_k_weight = d_wk,
                                   .scratch = scratch,
                                   .first_position = s.first_position});
      });
      // With two features a norm leaves a gradient that cancels almost wholly.
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_x), exact.x, derived_tolerance(naive.x, exact.x)));
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_wq), plus(exact.q_weight, 1.5, times),
                               derived_tolerance(naive.q_weight, exact.q_weight)));
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_wk), plus(exact.k_weight, 1.5, times),
                               derived_tolerance(naive.k_weight, exact.k_weight)));
    }
    EXPECT_EQ(values_of(ctx, f.x), in.x);
  }
}

TEST_P(QkNormRopeOp, OneTokenAtATimeIsTheWholeSequence) {
  const Shape s{1, 6, 4, 2, 32, 32, kTheta, 0};
  const Inputs in(s);
  const QkNormRope whole = forward_of(s, in);
  qk_norm_rope_forward(ctx, whole);
  const auto y = values_of(ctx, whole.y);
  for (std::int64_t t = 0; t < s.T; ++t) {
    QkNormRope one = whole;
    one.x = whole.x.slice(1, t, 1);
    one.y = pool.poisoned(DType::f32, {1, 1, s.row()});
    one.rstd = {};
    one.first_position = t;
    qk_norm_rope_forward(ctx, one);
    EXPECT_EQ(values_of(ctx, one.y), std::vector<float>(y.begin() + t * s.row(), y.begin() + (t + 1) * s.row()));
  }
}

TEST_P(QkNormRopeOp, ShapesThatDoNotFitAreRefused) {
  const Shape s{1, 2, 2, 1, 8, 8, kTheta, 0};
  QkNormRope args = forward_of(s, Inputs(s));
  args.D = 7;
  EXPECT_THROW(qk_norm_rope_forward(ctx, args), Error);
  args.D = 8;
  args.G = 2;  // x then has no room for v heads of 8
  args.H = 4;
  EXPECT_THROW(qk_norm_rope_forward(ctx, args), Error);
}

SFA_ON_EVERY_DEVICE(QkNormRopeOp);

TEST(QkNormRopeRounding, StoresBf16) {
  Context ctx(Device::cpu);
  ctx.round_bf16 = true;
  Pool pool(ctx);
  const Shape s{2, 5, 4, 2, 64, 64, 1e6, 0};
  const std::int64_t n = s.B * s.T * s.row();
  const auto x = rounded(normal(n, 1)), wq = rounded(normal(s.D, 2)), wk = rounded(normal(s.D, 3)),
             d_y = rounded(normal(n, 4));
  const QkNormRope f{.x = pool.floats(x, {s.B, s.T, s.row()}),
                     .H = s.H,
                     .G = s.G,
                     .D = s.D,
                     .q_weight = pool.floats(wq, {s.D}),
                     .k_weight = pool.floats(wk, {s.D}),
                     .theta = s.theta,
                     .y = pool.zeros(DType::f32, {s.B, s.T, s.row()}),
                     .rstd = pool.zeros(DType::f32, {s.B * s.T, s.heads()})};
  qk_norm_rope_forward(ctx, f);
  const auto exact = oracle::qk_norm_rope(s, as<double>(x), as<double>(wq), as<double>(wk), 1e-6);
  EXPECT_TRUE(all_bf16(values_of(ctx, f.y)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, f.y), exact.y, kUnitBf16 / 2));
  EXPECT_TRUE(near_in_norm(values_of(ctx, f.rstd), exact.rstd, 1e-6));  // statistics stay f32
  const Tensor d = pool.floats(d_y, {s.B, s.T, s.row()}), d_wq = pool.zeros(DType::f32, {s.D}),
               d_wk = pool.zeros(DType::f32, {s.D});
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    qk_norm_rope_backward(on, {.d_y = d,
                               .x = f.x,
                               .H = s.H,
                               .G = s.G,
                               .D = s.D,
                               .q_weight = f.q_weight,
                               .k_weight = f.k_weight,
                               .theta = s.theta,
                               .rstd = f.rstd,
                               .d_x = d,
                               .d_q_weight = d_wq,
                               .d_k_weight = d_wk,
                               .scratch = scratch});
  });
  const auto g = oracle::qk_norm_rope_backward(s, as<double>(d_y), as<double>(x), as<double>(wq), as<double>(wk), 1e-6);
  EXPECT_TRUE(all_bf16(values_of(ctx, d)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d), g.x, kUnitBf16 / 2));
  EXPECT_FALSE(all_bf16(values_of(ctx, d_wq)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_wk), g.k_weight, 1e-6));
}

}  // namespace
}  // namespace sfa::test
