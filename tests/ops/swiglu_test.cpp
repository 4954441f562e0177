// SwiGLU against the formula in double, which is itself held against central differences.
#include "ops/swiglu/swiglu.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/devices.h"
#include "support/oracle_qwen3.h"

namespace sfa::test {
namespace {

struct Shape {
  std::int64_t N, F;
};
constexpr Shape kShapes[] = {{1, 1}, {3, 7}, {5, 32}, {33, 65}, {2, 1000}, {130, 128}};

TEST(SwigluFormula, BackwardIsTheDerivativeOfForward) {
  const std::int64_t N = 3, F = 5;
  const auto gate_up = as<double>(normal(N * 2 * F, 1, 2.0f)), d_y = as<double>(normal(N * F, 2));
  const auto value = [&](const auto& at) { return dot(oracle::swiglu(at, N, F), d_y); };
  EXPECT_TRUE(near_in_norm(oracle::swiglu_backward(gate_up, d_y, N, F), numeric_gradient(value, gate_up), 1e-8));
}

class Swiglu : public DeviceTest {};

TEST_P(Swiglu, ForwardAndBackwardAreTheFormula) {
  for (const auto [N, F] : kShapes) {
    SCOPED_TRACE(::testing::Message() << N << " x " << F);
    const auto gate_up = normal(N * 2 * F, 1, 3.0f), d_y = normal(N * F, 2);
    const auto y_exact = oracle::swiglu(as<double>(gate_up), N, F);
    const auto d_exact = oracle::swiglu_backward(as<double>(gate_up), as<double>(d_y), N, F);
    const double y_tolerance = derived_tolerance(oracle::swiglu(gate_up, N, F), y_exact),
                 d_tolerance = derived_tolerance(oracle::swiglu_backward(gate_up, d_y, N, F), d_exact);
    const Tensor from = pool.floats(gate_up, {N, 2 * F}), y = pool.poisoned(DType::f32, {N, F}),
                 g = pool.floats(d_y, {N, F});
    swiglu_forward(ctx, from, y);
    EXPECT_TRUE(near_in_norm(values_of(ctx, y), y_exact, y_tolerance));
    // The gradient in memory of its own without y, then where the inputs are with it.
    const Tensor apart = pool.poisoned(DType::f32, {N, 2 * F}), again = pool.poisoned(DType::f32, {N, F});
    swiglu_backward(ctx, {.gate_up = from, .d_y = g, .d_gate_up = apart});
    EXPECT_TRUE(near_in_norm(values_of(ctx, apart), d_exact, d_tolerance));
    EXPECT_EQ(values_of(ctx, from), gate_up);
    swiglu_backward(ctx, {.gate_up = from, .d_y = g, .d_gate_up = from, .y = again});
    EXPECT_EQ(values_of(ctx, from), values_of(ctx, apart));
    EXPECT_EQ(values_of(ctx, again), values_of(ctx, y)) << "the forward's bits";
    EXPECT_EQ(values_of(ctx, g), d_y);
  }
}

TEST_P(Swiglu, LargeGatesSaturate) {
  // Far out the sigmoid is 0 or 1 to the last bit, and nothing overflows into NaN on the way.
  const std::vector<float> gate_up{-1e4f, -200.0f, 0.0f, 200.0f, 1e4f, 2.0f, 2.0f, 2.0f, 2.0f, 2.0f};
  const Tensor from = pool.floats(gate_up, {1, 10}), y = pool.poisoned(DType::f32, {1, 5}),
               d = pool.poisoned(DType::f32, {1, 10}), ones = pool.floats(std::vector<float>(5, 1.0f), {1, 5});
  swiglu_forward(ctx, from, y);
  EXPECT_EQ(values_of(ctx, y), (std::vector<float>{0, 0, 0, 400, 2e4f}));
  swiglu_backward(ctx, {.gate_up = from, .d_y = ones, .d_gate_up = d});
  EXPECT_EQ(values_of(ctx, d), (std::vector<float>{0, 0, 1, 2, 2, 0, 0, 0, 200, 1e4f}));
}

TEST_P(Swiglu, ShapesThatDoNotFitAreRefused) {
  const Tensor gate_up = pool.zeros(DType::f32, {2, 8}), y = pool.zeros(DType::f32, {2, 5});
  EXPECT_THROW(swiglu_forward(ctx, gate_up, y), Error);
  EXPECT_THROW(swiglu_backward(ctx, {.gate_up = gate_up, .d_y = y, .d_gate_up = gate_up}), Error);
}

SFA_ON_EVERY_DEVICE(Swiglu);

TEST(SwigluRounding, StoresBf16) {
  Context ctx(Device::cpu);
  ctx.round_bf16 = true;
  Pool pool(ctx);
  const std::int64_t N = 6, F = 96;
  const auto gate_up = rounded(normal(N * 2 * F, 1)), d_y = rounded(normal(N * F, 2));
  const Tensor from = pool.floats(gate_up, {N, 2 * F}), y = pool.zeros(DType::f32, {N, F}),
               d = pool.zeros(DType::f32, {N, 2 * F}), again = pool.zeros(DType::f32, {N, F});
  swiglu_forward(ctx, from, y);
  swiglu_backward(ctx, {.gate_up = from, .d_y = pool.floats(d_y, {N, F}), .d_gate_up = d, .y = again});
  EXPECT_TRUE(all_bf16(values_of(ctx, y)));
  EXPECT_TRUE(all_bf16(values_of(ctx, d)));
  EXPECT_EQ(values_of(ctx, again), values_of(ctx, y));
  EXPECT_TRUE(near_in_norm(values_of(ctx, y), oracle::swiglu(as<double>(gate_up), N, F), kUnitBf16 / 2));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d), oracle::swiglu_backward(as<double>(gate_up), as<double>(d_y), N, F),
                           kUnitBf16 / 2));
}

}  // namespace
}  // namespace sfa::test
