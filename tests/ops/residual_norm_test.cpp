// Residual addition + layer norm or RMS norm against the formula in double, which is itself held against central
// differences.
#include "ops/residual_norm/residual_norm.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/devices.h"
#include "support/oracle_qwen3.h"

namespace sfa::test {
namespace {

struct Shape {
  std::int64_t N, C;
};
constexpr Shape kShapes[] = {{1, 2}, {3, 7}, {5, 32}, {33, 65}, {2, 769}, {130, 128}};
constexpr float kEps = 1e-5f;

std::vector<float> sum(std::vector<float> a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

TEST(ResidualNormFormula, BackwardIsTheDerivativeOfForward) {
  const std::int64_t N = 3, C = 6;
  const auto r = as<double>(normal(N * C, 1)), w = as<double>(normal(C, 2)), b = as<double>(normal(C, 3)),
             d_y = as<double>(normal(N * C, 4));
  const auto value = [&](const auto& at, const auto& weight, const auto& bias) {
    return dot(oracle::layer_norm(at, weight, bias, N, C, 1e-5).y, d_y);
  };
  const auto g = oracle::layer_norm_backward(d_y, r, w, N, C, 1e-5);
  EXPECT_TRUE(near_in_norm(g.r, numeric_gradient([&](const auto& a) { return value(a, w, b); }, r), 1e-8));
  EXPECT_TRUE(near_in_norm(g.weight, numeric_gradient([&](const auto& a) { return value(r, a, b); }, w), 1e-8));
  EXPECT_TRUE(near_in_norm(g.bias, numeric_gradient([&](const auto& a) { return value(r, w, a); }, b), 1e-8));
}

TEST(RmsNormFormula, BackwardIsTheDerivativeOfForward) {
  const std::int64_t N = 3, C = 6;
  const auto r = as<double>(normal(N * C, 1)), w = as<double>(normal(C, 2)), d_y = as<double>(normal(N * C, 4));
  const auto value = [&](const auto& at, const auto& weight) {
    return dot(oracle::rms_norm(at, weight, N, C, 1e-5).y, d_y);
  };
  const auto g = oracle::rms_norm_backward(d_y, r, w, N, C, 1e-5);
  EXPECT_TRUE(near_in_norm(g.r, numeric_gradient([&](const auto& a) { return value(a, w); }, r), 1e-8));
  EXPECT_TRUE(near_in_norm(g.weight, numeric_gradient([&](const auto& a) { return value(r, a); }, w), 1e-8));
}

class ResidualNorm : public DeviceTest {};

TEST_P(ResidualNorm, ForwardIsTheFormula) {
  for (const auto [N, C] : kShapes) {
    SCOPED_TRACE(::testing::Message() << N << " x " << C);
    const auto residual = normal(N * C, 1), x = normal(N * C, 2), w = normal(C, 3), b = normal(C, 4);
    for (const bool branch : {false, true}) {
      const std::vector<float> r = branch ? sum(residual, x) : residual;
      const auto exact =
          oracle::layer_norm(as<double>(r), as<double>(w), as<double>(b), N, C, static_cast<double>(kEps));
      const auto naive = oracle::layer_norm(r, w, b, N, C, kEps);
      const Tensor out = branch ? pool.poisoned(DType::f32, {N, C}) : Tensor{}, y = pool.poisoned(DType::f32, {N, C}),
                   mean = pool.poisoned(DType::f32, {N}), rstd = pool.poisoned(DType::f32, {N});
      const Tensor tr = pool.floats(residual, {N, C});
      residual_norm_forward(ctx, {.residual = tr,
                                  .x = branch ? pool.floats(x, {N, C}) : Tensor{},
                                  .weight = pool.floats(w, {C}),
                                  .bias = pool.floats(b, {C}),
                                  .eps = kEps,
                                  .residual_out = out,
                                  .y = y,
                                  .mean = mean,
                                  .rstd = rstd});
      EXPECT_TRUE(near_in_norm(values_of(ctx, y), exact.y, derived_tolerance(naive.y, exact.y)));
      EXPECT_TRUE(near_in_norm(values_of(ctx, mean), exact.mean, derived_tolerance(naive.mean, exact.mean)));
      EXPECT_TRUE(near_in_norm(values_of(ctx, rstd), exact.rstd, derived_tolerance(naive.rstd, exact.rstd)));
      if (branch) {
        EXPECT_EQ(values_of(ctx, out), r);
      }
      EXPECT_EQ(values_of(ctx, tr), residual);
    }
  }
}

TEST_P(ResidualNorm, BackwardIsTheFormulaAccumulatesWeightsAndOverwritesActivations) {
  for (const auto [N, C] : kShapes) {
    SCOPED_TRACE(::testing::Message() << N << " x " << C);
    const auto r = normal(N * C, 1), w = normal(C, 3), d_y = normal(N * C, 4), d_next = normal(N * C, 5);
    const auto exact =
        oracle::layer_norm_backward(as<double>(d_y), as<double>(r), as<double>(w), N, C, static_cast<double>(kEps));
    const auto naive = oracle::layer_norm_backward(d_y, r, w, N, C, kEps);
    const Tensor y = pool.zeros(DType::f32, {N, C}), mean = pool.zeros(DType::f32, {N}),
                 rstd = pool.zeros(DType::f32, {N});
    const Tensor tr = pool.floats(r, {N, C}), tw = pool.floats(w, {C}), td = pool.floats(d_y, {N, C});
    residual_norm_forward(ctx, {.residual = tr,
                                .x = {},
                                .weight = tw,
                                .bias = tw,
                                .eps = kEps,
                                .residual_out = {},
                                .y = y,
                                .mean = mean,
                                .rstd = rstd});
    const Tensor d_w = pool.floats(std::vector<float>(w.size(), 1.5f), {C}),
                 d_b = pool.floats(std::vector<float>(w.size(), -0.5f), {C});
    // 1: no gradient from after; 2: one in its own memory; 3: one in the memory that is overwritten.
    for (int form = 1; form <= 3; ++form) {
      const Tensor next = form == 1 ? Tensor{} : pool.floats(d_next, {N, C});
      const Tensor d_r = form == 3 ? next : pool.poisoned(DType::f32, {N, C});
      run_planned(ctx, [&](Context& on, Arena& scratch) {
        residual_norm_backward(on, {.d_y = td,
                                    .d_residual_out = next,
                                    .residual_out = tr,
                                    .weight = tw,
                                    .mean = mean,
                                    .rstd = rstd,
                                    .d_residual = d_r,
                                    .d_weight = d_w,
                                    .d_bias = d_b,
                                    .scratch = scratch});
      });
      std::vector<double> want = exact.r;
      std::vector<float> rough = naive.r;
      if (form > 1)
        for (std::size_t i = 0; i < want.size(); ++i) {
          want[i] += d_next[i];
          rough[i] += d_next[i];
        }
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_r), want, derived_tolerance(rough, want))) << "form " << form;
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_w), plus(exact.weight, 1.5, form),
                               derived_tolerance(naive.weight, exact.weight)));
      EXPECT_TRUE(
          near_in_norm(values_of(ctx, d_b), plus(exact.bias, -0.5, form), derived_tolerance(naive.bias, exact.bias)));
    }
  }
}

TEST_P(ResidualNorm, ConstantRowsStayFinite) {
  const std::int64_t N = 2, C = 48;
  const Tensor r = pool.floats(std::vector<float>(static_cast<std::size_t>(N * C), 3.0f), {N, C}),
               w = pool.floats(normal(C, 1), {C}), b = pool.floats(normal(C, 2), {C});
  const Tensor y = pool.poisoned(DType::f32, {N, C}), mean = pool.zeros(DType::f32, {N}),
               rstd = pool.zeros(DType::f32, {N});
  residual_norm_forward(ctx, {.residual = r,
                              .x = {},
                              .weight = w,
                              .bias = b,
                              .eps = kEps,
                              .residual_out = {},
                              .y = y,
                              .mean = mean,
                              .rstd = rstd});
  std::vector<float> want = normal(C, 2);
  want.insert(want.end(), want.begin(), want.begin() + C);
  EXPECT_EQ(values_of(ctx, y), want);
}

TEST_P(ResidualNorm, WithoutBiasAndMeanItIsRmsNorm) {
  for (const auto [N, C] : kShapes) {
    SCOPED_TRACE(::testing::Message() << N << " x " << C);
    // A mean that is far from zero: layer norm would take it away.
    std::vector<float> residual = normal(N * C, 1);
    for (float& v : residual) v += 2;
    const auto x = normal(N * C, 2), w = normal(C, 3), d_y = normal(N * C, 4), d_next = normal(N * C, 5);
    const auto r = sum(residual, x);
    const auto exact = oracle::rms_norm(as<double>(r), as<double>(w), N, C, static_cast<double>(kEps));
    const auto naive = oracle::rms_norm(r, w, N, C, kEps);
    const Tensor out = pool.poisoned(DType::f32, {N, C}), y = pool.poisoned(DType::f32, {N, C}),
                 rstd = pool.poisoned(DType::f32, {N}), tw = pool.floats(w, {C});
    residual_norm_forward(ctx, {.residual = pool.floats(residual, {N, C}),
                                .x = pool.floats(x, {N, C}),
                                .weight = tw,
                                .bias = {},
                                .eps = kEps,
                                .residual_out = out,
                                .y = y,
                                .mean = {},
                                .rstd = rstd});
    EXPECT_EQ(values_of(ctx, out), r);
    EXPECT_TRUE(near_in_norm(values_of(ctx, y), exact.y, derived_tolerance(naive.y, exact.y)));
    EXPECT_TRUE(near_in_norm(values_of(ctx, rstd), exact.rstd, derived_tolerance(naive.rstd, exact.rstd)));

    const auto g =
        oracle::rms_norm_backward(as<double>(d_y), as<double>(r), as<double>(w), N, C, static_cast<double>(kEps));
    const auto rough = oracle::rms_norm_backward(d_y, r, w, N, C, kEps);
    const Tensor td = pool.floats(d_y, {N, C}), d_w = pool.floats(std::vector<float>(w.size(), 1.5f), {C}),
                 d_x_bias = pool.floats(std::vector<float>(w.size(), 0.5f), {C});
    // 1: no gradient from after; 2: one in the memory that is overwritten, and the bias of the layer in front.
    for (int form = 1; form <= 2; ++form) {
      const Tensor next = form == 1 ? Tensor{} : pool.floats(d_next, {N, C});
      const Tensor d_r = form == 1 ? pool.poisoned(DType::f32, {N, C}) : next;
      run_planned(ctx, [&](Context& on, Arena& scratch) {
        residual_norm_backward(on, {.d_y = td,
                                    .d_residual_out = next,
                                    .residual_out = out,
                                    .weight = tw,
                                    .mean = {},
                                    .rstd = rstd,
                                    .d_residual = d_r,
                                    .d_weight = d_w,
                                    .d_bias = {},
                                    .scratch = scratch,
                                    .d_x_bias = form == 1 ? Tensor{} : d_x_bias});
      });
      std::vector<double> want = g.r;
      std::vector<float> near = rough.r;
      if (form == 2)
        for (std::size_t i = 0; i < want.size(); ++i) {
          want[i] += d_next[i];
          near[i] += d_next[i];
        }
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_r), want, derived_tolerance(near, want))) << "form " << form;
      EXPECT_TRUE(
          near_in_norm(values_of(ctx, d_w), plus(g.weight, 1.5, form), derived_tolerance(rough.weight, g.weight)));
      if (form == 1) continue;
      std::vector<double> columns(w.size(), 0.5);
      for (std::size_t i = 0; i < want.size(); ++i) columns[i % w.size()] += want[i];
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_x_bias), columns, 1e-5));
    }
  }
}

TEST_P(ResidualNorm, BiasAndMeanAreLeftOutTogether) {
  const Tensor r = pool.zeros(DType::f32, {2, 4}), y = pool.zeros(DType::f32, {2, 4}), w = pool.zeros(DType::f32, {4}),
               stat = pool.zeros(DType::f32, {2});
  ResidualNormForward args{
      .residual = r, .x = {}, .weight = w, .bias = {}, .residual_out = {}, .y = y, .mean = stat, .rstd = stat};
  EXPECT_THROW(residual_norm_forward(ctx, args), Error);
}

SFA_ON_EVERY_DEVICE(ResidualNorm);

TEST(ResidualNormRounding, StoresBf16AndNormalisesWhatItStored) {
  Context ctx(Device::cpu);
  ctx.round_bf16 = true;
  Pool pool(ctx);
  const std::int64_t N = 6, C = 96;
  const auto residual = rounded(normal(N * C, 1, 4.0f)), x = rounded(normal(N * C, 2)), w = rounded(normal(C, 3)),
             b = rounded(normal(C, 4)), d_y = rounded(normal(N * C, 5));
  const auto r = rounded(sum(residual, x));
  const Tensor out = pool.zeros(DType::f32, {N, C}), y = pool.zeros(DType::f32, {N, C}),
               mean = pool.zeros(DType::f32, {N}), rstd = pool.zeros(DType::f32, {N}), tw = pool.floats(w, {C});
  residual_norm_forward(ctx, {.residual = pool.floats(residual, {N, C}),
                              .x = pool.floats(x, {N, C}),
                              .weight = tw,
                              .bias = pool.floats(b, {C}),
                              .eps = kEps,
                              .residual_out = out,
                              .y = y,
                              .mean = mean,
                              .rstd = rstd});
  EXPECT_EQ(values_of(ctx, out), r);
  EXPECT_TRUE(all_bf16(values_of(ctx, y)));
  const auto exact = oracle::layer_norm(as<double>(r), as<double>(w), as<double>(b), N, C, static_cast<double>(kEps));
  EXPECT_TRUE(near_in_norm(values_of(ctx, y), exact.y, kUnitBf16 / 2));
  EXPECT_TRUE(near_in_norm(values_of(ctx, mean), exact.mean, 1e-6));  // statistics stay f32
  EXPECT_TRUE(near_in_norm(values_of(ctx, rstd), exact.rstd, 1e-6));

  const Tensor d_r = pool.zeros(DType::f32, {N, C}), d_w = pool.zeros(DType::f32, {C}),
               d_b = pool.zeros(DType::f32, {C});
  const Tensor td = pool.floats(d_y, {N, C});
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    residual_norm_backward(on, {.d_y = td,
                                .d_residual_out = {},
                                .residual_out = out,
                                .weight = tw,
                                .mean = mean,
                                .rstd = rstd,
                                .d_residual = d_r,
                                .d_weight = d_w,
                                .d_bias = d_b,
                                .scratch = scratch});
  });
  const auto g =
      oracle::layer_norm_backward(as<double>(d_y), as<double>(r), as<double>(w), N, C, static_cast<double>(kEps));
  EXPECT_TRUE(all_bf16(values_of(ctx, d_r)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_r), g.r, kUnitBf16 / 2));
  EXPECT_FALSE(all_bf16(values_of(ctx, d_w)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_w), g.weight, 1e-6));
}

}  // namespace
}  // namespace sfa::test
