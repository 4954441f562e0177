// The ops against PyTorch (tests/golden/make_golden.py, op_golden): norm, linear + gelu, cross entropy, attention dense
// and SFA.
#include <gtest/gtest.h>

#include "attention/reference.h"
#include "golden/golden_file.h"
#include "ops/classifier/classifier.h"
#include "ops/linear/linear.h"
#include "ops/residual_norm/residual_norm.h"
#include "ops/select/select.h"
#include "support/compare.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

// Sums of tens of terms in float32: a few units of rounding, and an order of magnitude below any slip in a formula.
constexpr double kTolerance = 32 * kUnitF32;

class OpGolden : public DeviceTest {
 protected:
  GoldenFile golden = read_golden("ops.bin");
  void expect(const Tensor& got, const std::string& name) {
    EXPECT_TRUE(near_in_norm(values_of(ctx, got), as<double>(golden.at(name).floats), kTolerance)) << name;
  }
};

TEST_P(OpGolden, LayerNorm) {
  const Tensor x = pool.floats(normal(13 * 40, 1), {13, 40}), w = pool.floats(normal(40, 2), {40}),
               b = pool.floats(normal(40, 3), {40}), d_y = pool.floats(normal(13 * 40, 4), {13, 40});
  const Tensor y = pool.poisoned(DType::f32, {13, 40}), mean = pool.zeros(DType::f32, {13}),
               rstd = pool.zeros(DType::f32, {13}), d_x = pool.poisoned(DType::f32, {13, 40}),
               d_w = pool.zeros(DType::f32, {40}), d_b = pool.zeros(DType::f32, {40});
  residual_norm_forward(ctx, {.residual = x,
                              .x = {},
                              .weight = w,
                              .bias = b,
                              .eps = 1e-5f,
                              .residual_out = {},
                              .y = y,
                              .mean = mean,
                              .rstd = rstd});
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    residual_norm_backward(on, {.d_y = d_y,
                                .d_residual_out = {},
                                .residual_out = x,
                                .weight = w,
                                .mean = mean,
                                .rstd = rstd,
                                .d_residual = d_x,
                                .d_weight = d_w,
                                .d_bias = d_b,
                                .scratch = scratch});
  });
  expect(y, "layer_norm.y");
  expect(d_x, "layer_norm.d_x");
  expect(d_w, "layer_norm.d_weight");
  expect(d_b, "layer_norm.d_bias");
}

TEST_P(OpGolden, LinearGelu) {
  const Tensor x = pool.floats(normal(13 * 24, 1), {13, 24}), w = pool.floats(normal(33 * 24, 2, 0.3f), {33, 24}),
               b = pool.floats(normal(33, 3), {33}), d_y = pool.floats(normal(13 * 33, 4), {13, 33});
  const Tensor y = pool.poisoned(DType::f32, {13, 33}), pre = pool.poisoned(DType::f32, {13, 33}),
               d_x = pool.poisoned(DType::f32, {13, 24}), d_w = pool.zeros(DType::f32, {33, 24}),
               d_b = pool.zeros(DType::f32, {33}), d_pre = pool.poisoned(DType::f32, {13, 33});
  linear_forward(ctx, {x, w, b, y, pre});
  expect(pre, "linear_gelu.pre");
  expect(y, "linear_gelu.y");
  // The gradient passes the gelu in the backward of the layer after it; the identity stands for that layer here.
  std::vector<float> identity(33 * 33);
  for (std::size_t i = 0; i < 33; ++i) identity[i * 34] = 1.0f;
  const Tensor one = pool.floats(identity, {33, 33}), unused = pool.zeros(DType::f32, {33, 33});
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    linear_backward(on, {d_y, y, one, pre, d_pre, unused, Tensor{}, scratch});
  });
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    linear_backward(on, {d_pre, x, w, Tensor{}, d_x, d_w, d_b, scratch});
  });
  expect(d_x, "linear_gelu.d_x");
  expect(d_w, "linear_gelu.d_weight");
  expect(d_b, "linear_gelu.d_bias");
}

TEST_P(OpGolden, CrossEntropy) {
  const Tensor x = pool.floats(normal(11 * 16, 1), {11, 16}), w = pool.floats(normal(37 * 16, 2), {37, 16}),
               targets = pool.integers(golden.at("cross_entropy.targets").integers, {11});
  const Tensor losses = pool.poisoned(DType::f32, {11}), d_x = pool.poisoned(DType::f32, {11, 16}),
               d_w = pool.zeros(DType::f32, {37, 16});
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    classifier_loss(on, {x, w, targets, 37, 1.0f / 11, losses, d_x, d_w, scratch});
  });
  expect(losses, "cross_entropy.losses");
  expect(d_x, "cross_entropy.d_x");
  expect(d_w, "cross_entropy.d_weight");
}

TEST_P(OpGolden, Attention) {
  for (const std::string name : {"dense", "sfa"}) {
    const Tensor q = pool.floats(normal(2 * 17 * 4 * 16, 1), {2, 17, 4, 16}),
                 k = pool.floats(normal(2 * 17 * 2 * 16, 2), {2, 17, 2, 16}),
                 v = pool.floats(normal(2 * 17 * 2 * 8, 3), {2, 17, 2, 8}),
                 d_out = pool.floats(normal(2 * 17 * 4 * 8, 4), {2, 17, 4, 8});
    const Tensor qi = pool.zeros(DType::u8, {2, 17, 4, 5}), ki = pool.zeros(DType::u8, {2, 17, 2, 5});
    if (name == "sfa") {
      select_topk(ctx, {q, 5, false, pool.zeros(DType::f32, {2, 17, 4, 5}), qi, q});
      select_topk(ctx, {k, 5, false, pool.zeros(DType::f32, {2, 17, 2, 5}), ki, k});
    }
    const ReferenceForward f{.q = q,
                             .k = k,
                             .v = v,
                             .ranges = {},
                             .scale = 0.25f,
                             .q_indices = {},
                             .k_indices = {},
                             .out = pool.poisoned(DType::f32, {2, 17, 4, 8}),
                             .lse = pool.poisoned(DType::f32, {2, 4, 17})};
    const Tensor d_q = pool.poisoned(DType::f32, {2, 17, 4, 16}), d_k = pool.poisoned(DType::f32, {2, 17, 2, 16}),
                 d_v = pool.poisoned(DType::f32, {2, 17, 2, 8});
    attention_reference_forward(ctx, f);
    run_planned(ctx, [&](Context& on, Arena& scratch) {
      attention_reference_backward(on, {f, d_out, d_q, d_k, d_v, &scratch});
    });
    if (name == "sfa") {
      select_mask_gradient(ctx, d_q, qi);
      select_mask_gradient(ctx, d_k, ki);
    }
    expect(f.out, "attention." + name + ".out");
    expect(d_q, "attention." + name + ".d_q");
    expect(d_k, "attention." + name + ".d_k");
    expect(d_v, "attention." + name + ".d_v");
  }
}

SFA_ON_EVERY_DEVICE(OpGolden);

}  // namespace
}  // namespace sfa::test
