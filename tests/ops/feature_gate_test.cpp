// Factors of features: the formula in double, in place on packed rows, on vectors and on odd widths.
#include "ops/feature_gate/feature_gate.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/devices.h"
#include "support/oracle.h"

namespace sfa::test {
namespace {

class FeatureGateTest : public DeviceTest {};

TEST(FeatureGateFormula, TheGradientIsTheDerivative) {
  Context ctx(Device::cpu);
  Pool pool(ctx);
  const std::int64_t N = 4, C = 5;
  const auto x = normal(N * C, 1), weight = normal(C, 2), d_y = normal(N * C, 3);
  const auto value = [&](const std::vector<double>& rows, const std::vector<double>& w) {
    double sum = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) sum += rows[i] * w[i % C] * static_cast<double>(d_y[i]);
    return sum;
  };
  const Tensor d_rows = pool.floats(d_y, {N, C}), d_weight = pool.zeros(DType::f32, {C});
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    feature_gate_backward(on, {d_rows, pool.floats(weight, {C}), pool.floats(x, {N, C}), d_weight, scratch});
  });
  const auto w = as<double>(weight), rows = as<double>(x);
  EXPECT_TRUE(
      near_in_norm(values_of(ctx, d_rows), numeric_gradient([&](const auto& a) { return value(a, w); }, rows), 1e-6));
  EXPECT_TRUE(
      near_in_norm(values_of(ctx, d_weight), numeric_gradient([&](const auto& a) { return value(rows, a); }, w), 1e-6));
}

TEST_P(FeatureGateTest, MultipliesKeepsAndAccumulates) {
  for (const auto& [N, C, row] :
       std::vector<std::array<std::int64_t, 3>>{{1, 1, 1}, {7, 24, 40}, {130, 96, 96}, {33, 50, 61}, {1000, 128, 192}})
    for (const DType type : {DType::f32, DType::bf16}) {
      if (type == DType::bf16 && !ctx.on_cuda()) continue;
      SCOPED_TRACE(::testing::Message() << N << " x " << C << " of " << row << " " << name_of(type));
      const auto stored = [&](std::vector<float> v) { return type == DType::bf16 ? rounded(v) : v; };
      const auto x = stored(normal(N * row, 1)), w = stored(normal(C, 2)), d_y = stored(normal(N * row, 3));
      const Tensor rows = pool.floats(x, {N, row}, type), weight = pool.floats(w, {C}, type),
                   kept = pool.poisoned(type, {N, C}), d_rows = pool.floats(d_y, {N, row}, type),
                   d_weight = pool.floats(std::vector<float>(static_cast<std::size_t>(C), 2.0f), {C});
      feature_gate_forward(ctx, {rows, weight, kept});
      run_planned(ctx, [&](Context& on, Arena& scratch) {
        feature_gate_backward(on, {d_rows, weight, kept, d_weight, scratch});
      });
      std::vector<double> y = as<double>(x), d_x = as<double>(d_y), d_w(static_cast<std::size_t>(C), 2.0);
      std::vector<float> before;
      for (std::int64_t n = 0; n < N; ++n)
        for (std::int64_t c = 0; c < C; ++c) {
          const auto at = static_cast<std::size_t>(n * row + c), column = static_cast<std::size_t>(c);
          before.push_back(x[at]);
          d_w[column] += d_x[at] * y[at];
          y[at] *= static_cast<double>(w[column]);
          d_x[at] *= static_cast<double>(w[column]);
        }
      const double tolerance = type == DType::bf16 ? 0x1p-9 : 0x1p-23;
      EXPECT_TRUE(near_in_norm(values_of(ctx, rows), y, tolerance));
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_rows), d_x, tolerance));
      EXPECT_EQ(values_of(ctx, kept), before);
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_weight), d_w, 1e-6 * std::sqrt(static_cast<double>(N))));
    }
}

TEST_P(FeatureGateTest, OfOnesItChangesNothingAndKeepsNothingUnasked) {
  const auto x = normal(9 * 20, 1);
  const Tensor rows = pool.floats(x, {9, 20});
  feature_gate_forward(ctx, {rows, pool.floats(std::vector<float>(16, 1.0f), {16}), {}});
  EXPECT_EQ(values_of(ctx, rows), x);
}

SFA_ON_EVERY_DEVICE(FeatureGateTest);

TEST(FeatureGateChecks, ShapesThatDoNotFitAreNamed) {
  Context ctx(Device::cpu);
  Pool pool(ctx);
  const Tensor rows = pool.zeros(DType::f32, {2, 12});
  EXPECT_THROW(feature_gate_forward(ctx, {rows, pool.zeros(DType::f32, {13}), {}}), Error);
  EXPECT_THROW(feature_gate_forward(ctx, {rows, pool.zeros(DType::f32, {8}), pool.zeros(DType::f32, {2, 12})}), Error);
}

}  // namespace
}  // namespace sfa::test
