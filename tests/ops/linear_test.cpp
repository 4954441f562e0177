// Linear layer with its epilogues against the formula in double, which is itself held against central differences.
#include "ops/linear/linear.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/devices.h"
#include "support/oracle.h"

namespace sfa::test {
namespace {

struct Shape {
  std::int64_t N, I, O;
};
// Ragged on purpose: one row, one column, sizes beside multiples of vector widths, more columns than a bias tile.
constexpr Shape kShapes[] = {{1, 1, 1}, {3, 5, 7}, {17, 33, 65}, {64, 48, 130}, {5, 128, 1}, {129, 7, 31}};

class Linear : public DeviceTest {
 protected:
  // Everything that one shape needs, as floats.
  struct Case {
    Shape s;
    std::vector<float> x, w, b, d_y, pre_of_x;
    explicit Case(Shape shape) : s(shape) {
      x = normal(s.N * s.I, 1);
      w = normal(s.O * s.I, 2, 0.3f);
      b = normal(s.O, 3);
      d_y = normal(s.N * s.O, 4);
      pre_of_x = normal(s.N * s.I, 5, 1.5f);
    }
  };
};

TEST(LinearFormula, BackwardIsTheDerivativeOfForward) {
  const std::int64_t N = 3, I = 4, O = 5;
  const auto pre = as<double>(normal(N * I, 1)), w = as<double>(normal(O * I, 2)), b = as<double>(normal(O, 3)),
             d_y = as<double>(normal(N * O, 4));
  const auto value = [&](const auto& a, const auto& weight, const auto& bias) {
    return dot(oracle::linear(oracle::map_gelu(a), weight, bias, N, I, O), d_y);
  };
  const auto g = oracle::linear_backward(d_y, oracle::map_gelu(pre), w, pre, N, I, O);
  EXPECT_TRUE(near_in_norm(g.x, numeric_gradient([&](const auto& a) { return value(a, w, b); }, pre), 1e-8));
  EXPECT_TRUE(near_in_norm(g.weight, numeric_gradient([&](const auto& a) { return value(pre, a, b); }, w), 1e-8));
  EXPECT_TRUE(near_in_norm(g.bias, numeric_gradient([&](const auto& a) { return value(pre, w, a); }, b), 1e-8));
}

TEST_P(Linear, ForwardIsTheFormula) {
  for (const Shape s : kShapes) {
    SCOPED_TRACE(::testing::Message() << s.N << " x " << s.I << " -> " << s.O);
    const Case c(s);
    for (const bool bias : {false, true}) {
      const std::vector<float> b = bias ? c.b : std::vector<float>{};
      const auto exact = oracle::linear(as<double>(c.x), as<double>(c.w), as<double>(b), s.N, s.I, s.O);
      const auto naive = oracle::linear(c.x, c.w, b, s.N, s.I, s.O);
      const Tensor y = pool.poisoned(DType::f32, {s.N, s.O}), z = pool.poisoned(DType::f32, {s.N, s.O}),
                   pre = pool.poisoned(DType::f32, {s.N, s.O});
      const Tensor x = pool.floats(c.x, {s.N, s.I}), w = pool.floats(c.w, {s.O, s.I}),
                   bias_t = bias ? pool.floats(b, {s.O}) : Tensor{};
      linear_forward(ctx, {x, w, bias_t, y, Tensor{}});
      EXPECT_TRUE(near_in_norm(values_of(ctx, y), exact, derived_tolerance(naive, exact)));
      linear_forward(ctx, {x, w, bias_t, z, pre});
      EXPECT_TRUE(near_in_norm(values_of(ctx, pre), exact, derived_tolerance(naive, exact)));
      const auto activated = oracle::map_gelu(exact);
      EXPECT_TRUE(near_in_norm(values_of(ctx, z), activated, derived_tolerance(oracle::map_gelu(naive), activated)));
    }
  }
}

TEST_P(Linear, BackwardIsTheFormulaAccumulatesWeightsAndOverwritesActivations) {
  for (const Shape s : kShapes) {
    SCOPED_TRACE(::testing::Message() << s.N << " x " << s.I << " -> " << s.O);
    const Case c(s);
    for (const bool gelu : {false, true}) {
      const std::vector<float> pre = gelu ? c.pre_of_x : std::vector<float>{};
      const auto exact =
          oracle::linear_backward(as<double>(c.d_y), as<double>(c.x), as<double>(c.w), as<double>(pre), s.N, s.I, s.O);
      const auto naive = oracle::linear_backward(c.d_y, c.x, c.w, pre, s.N, s.I, s.O);
      const Tensor d_x = pool.poisoned(DType::f32, {s.N, s.I});
      const Tensor d_w = pool.floats(std::vector<float>(c.w.size(), 2.0f), {s.O, s.I});
      const Tensor d_b = pool.floats(std::vector<float>(c.b.size(), -3.0f), {s.O});
      const Tensor d_pre_b =
          gelu ? pool.floats(std::vector<float>(static_cast<std::size_t>(s.I), 1.0f), {s.I}) : Tensor{};
      std::vector<double> sums(static_cast<std::size_t>(s.I));
      std::vector<float> naive_sums(sums.size());
      for (std::size_t i = 0; i < exact.x.size(); ++i) {
        sums[i % sums.size()] += exact.x[i];
        naive_sums[i % sums.size()] += naive.x[i];
      }
      const Tensor d_y = pool.floats(c.d_y, {s.N, s.O}), x = pool.floats(c.x, {s.N, s.I}),
                   w = pool.floats(c.w, {s.O, s.I}), pre_t = gelu ? pool.floats(pre, {s.N, s.I}) : Tensor{};
      for (int times = 1; times <= 2; ++times) {
        run_planned(ctx, [&](Context& on, Arena& scratch) {
          linear_backward(on, {d_y, x, w, pre_t, d_x, d_w, d_b, scratch, d_pre_b});
        });
        if (gelu) {
          EXPECT_TRUE(
              near_in_norm(values_of(ctx, d_pre_b), plus(sums, 1.0, times), derived_tolerance(naive_sums, sums)));
        }
        EXPECT_TRUE(near_in_norm(values_of(ctx, d_x), exact.x, derived_tolerance(naive.x, exact.x)));
        EXPECT_TRUE(near_in_norm(values_of(ctx, d_w), plus(exact.weight, 2.0, times),
                                 derived_tolerance(naive.weight, exact.weight)));
        EXPECT_TRUE(near_in_norm(values_of(ctx, d_b), plus(exact.bias, -3.0, times),
                                 derived_tolerance(naive.bias, exact.bias)));
      }
    }
  }
}

TEST_P(Linear, BackwardWithoutBiasOrInputGradient) {
  const Case c({6, 10, 9});
  const auto exact = oracle::linear_backward(as<double>(c.d_y), as<double>(c.x), as<double>(c.w), {}, 6, 10, 9);
  const Tensor d_y = pool.floats(c.d_y, {6, 9}), x = pool.floats(c.x, {6, 10}), w = pool.floats(c.w, {9, 10});
  const Tensor d_w = pool.zeros(DType::f32, {9, 10});
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    linear_backward(on, {d_y, x, w, Tensor{}, Tensor{}, d_w, Tensor{}, scratch});
  });
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_w), exact.weight, 1e-6));
}

TEST_P(Linear, BackwardWithoutWeightGradient) {
  const Case c({6, 10, 9});
  const auto exact = oracle::linear_backward(as<double>(c.d_y), as<double>(c.x), as<double>(c.w), {}, 6, 10, 9);
  const Tensor d_y = pool.floats(c.d_y, {6, 9}), x = pool.floats(c.x, {6, 10}), w = pool.floats(c.w, {9, 10});
  const Tensor d_x = pool.poisoned(DType::f32, {6, 10});
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    linear_backward(on, {d_y, x, w, Tensor{}, d_x, Tensor{}, Tensor{}, scratch});
  });
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_x), exact.x, 1e-6));
}

TEST_P(Linear, SameBitsEveryRun) {
  const Case c({129, 40, 70});
  std::vector<float> first;
  for (int run = 0; run < 3; ++run) {
    const Tensor d_x = pool.poisoned(DType::f32, {129, 40}), d_w = pool.zeros(DType::f32, {70, 40}),
                 d_b = pool.zeros(DType::f32, {70});
    const Tensor d_y = pool.floats(c.d_y, {129, 70}), x = pool.floats(c.x, {129, 40}), w = pool.floats(c.w, {70, 40});
    run_planned(ctx, [&](Context& on, Arena& scratch) {
      linear_backward(on, {d_y, x, w, Tensor{}, d_x, d_w, d_b, scratch});
    });
    std::vector<float> all = values_of(ctx, d_x);
    for (const Tensor& t : {d_w, d_b}) {
      const auto more = values_of(ctx, t);
      all.insert(all.end(), more.begin(), more.end());
    }
    if (run == 0) first = all;
    EXPECT_EQ(all, first);
  }
}

SFA_ON_EVERY_DEVICE(Linear);

TEST(LinearChecks, ShapesThatDoNotFitAreNamed) {
  Context ctx(Device::cpu);
  Pool pool(ctx);
  const Tensor x = pool.zeros(DType::f32, {2, 3}), w = pool.zeros(DType::f32, {4, 5}),
               y = pool.zeros(DType::f32, {2, 4});
  EXPECT_THROW(linear_forward(ctx, {x, w, Tensor{}, y, Tensor{}}), Error);
}

// The arithmetic of a GPU that keeps bf16: sums in f32, one rounding of what is stored, none of the gradients of
// parameters.
TEST(LinearRounding, StoresBf16) {
  Context ctx(Device::cpu);
  ctx.round_bf16 = true;
  Pool pool(ctx);
  const std::int64_t N = 9, I = 31, O = 14;
  const auto x = rounded(normal(N * I, 1)), w = rounded(normal(O * I, 2)), b = rounded(normal(O, 3)),
             d_y = rounded(normal(N * O, 4)), before = rounded(normal(N * I, 5));
  const Tensor tx = pool.floats(x, {N, I}), tw = pool.floats(w, {O, I}), tb = pool.floats(b, {O}),
               y = pool.zeros(DType::f32, {N, O}), pre = pool.zeros(DType::f32, {N, O});
  linear_forward(ctx, {tx, tw, tb, y, pre});
  const auto exact = oracle::linear(as<double>(x), as<double>(w), as<double>(b), N, I, O);
  EXPECT_TRUE(all_bf16(values_of(ctx, y)));
  EXPECT_TRUE(all_bf16(values_of(ctx, pre)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, pre), exact, kUnitBf16 / 2));
  EXPECT_TRUE(near_in_norm(values_of(ctx, y), oracle::map_gelu(exact), kUnitBf16));

  const Tensor d_x = pool.zeros(DType::f32, {N, I}), d_w = pool.zeros(DType::f32, {O, I}),
               d_b = pool.zeros(DType::f32, {O});
  const Tensor td = pool.floats(d_y, {N, O}), tp = pool.floats(before, {N, I});
  run_planned(ctx, [&](Context& on, Arena& scratch) { linear_backward(on, {td, tx, tw, tp, d_x, d_w, d_b, scratch}); });
  const auto g = oracle::linear_backward(as<double>(d_y), as<double>(x), as<double>(w), as<double>(before), N, I, O);
  EXPECT_TRUE(all_bf16(values_of(ctx, d_x)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_x), g.x, kUnitBf16 / 2));
  EXPECT_FALSE(all_bf16(values_of(ctx, d_w)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_w), g.weight, 1e-6));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_b), g.bias, 1e-6));
}

}  // namespace
}  // namespace sfa::test
