// Head + cross entropy against the formula in double, which is itself held against central differences.
#include "ops/classifier/classifier.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/compare.h"
#include "support/devices.h"
#include "support/oracle.h"

namespace sfa::test {
namespace {

std::vector<std::int32_t> some_targets(std::int64_t N, std::int64_t V, bool ignore) {
  std::vector<std::int32_t> targets;
  for (std::int64_t n = 0; n < N; ++n)
    targets.push_back(ignore && n % 3 == 1 ? -1 : static_cast<std::int32_t>((n * 13 + V - 1) % V));
  return targets;
}

double total(const std::vector<double>& losses) {
  double sum = 0;
  for (double l : losses) sum += l;
  return sum;
}

TEST(ClassifierFormula, BackwardIsTheDerivativeOfForward) {
  const std::int64_t N = 4, C = 3, V = 5, Vp = 8;
  const auto targets = some_targets(N, V, true);
  const auto x = as<double>(normal(N * C, 1)), w = as<double>(normal(Vp * C, 2));
  const double scale = 0.37;
  const auto got = oracle::classifier(x, w, targets, C, V, scale);
  const auto value = [&](const auto& a, const auto& b) {
    return scale * total(oracle::classifier(a, b, targets, C, V, scale).losses);
  };
  EXPECT_TRUE(near_in_norm(got.d_x, numeric_gradient([&](const auto& a) { return value(a, w); }, x), 1e-8));
  EXPECT_TRUE(near_in_norm(got.d_weight, numeric_gradient([&](const auto& a) { return value(x, a); }, w), 1e-8));
}

class Head : public DeviceTest {};

struct Shape {
  std::int64_t N, C, V, Vp;
};
constexpr Shape kShapes[] = {{1, 1, 1, 1}, {5, 7, 11, 16}, {17, 32, 257, 320}, {130, 24, 64, 64}, {3, 96, 1000, 1024}};

TEST_P(Head, LossAndGradientsAreTheFormula) {
  for (const Shape& s : kShapes) {
    const std::int64_t N = s.N, C = s.C, V = s.V, Vp = s.Vp;
    SCOPED_TRACE(::testing::Message() << N << " rows, " << C << " wide, " << V << " of " << Vp);
    const auto targets = some_targets(N, V, N > 1);
    const auto x = normal(N * C, 1), w = normal(Vp * C, 2, 0.4f);
    const float scale = 1.0f / static_cast<float>(N);
    const auto exact = oracle::classifier(as<double>(x), as<double>(w), targets, C, V, static_cast<double>(scale));
    const auto naive = oracle::classifier(x, w, targets, C, V, scale);
    const Tensor tx = pool.floats(x, {N, C}), tw = pool.floats(w, {Vp, C}), tt = pool.integers(targets, {N});
    const Tensor losses = pool.poisoned(DType::f32, {N}), only = pool.poisoned(DType::f32, {N}),
                 d_x = pool.poisoned(DType::f32, {N, C}),
                 d_w = pool.floats(std::vector<float>(w.size(), 0.25f), {Vp, C});
    run_planned(ctx, [&](Context& on, Arena& scratch) {
      classifier_loss(on, {tx, tw, tt, V, 1.0f, only, Tensor{}, Tensor{}, scratch});
    });
    EXPECT_TRUE(near_in_norm(values_of(ctx, only), exact.losses, derived_tolerance(naive.losses, exact.losses)));
    for (int times = 1; times <= 2; ++times) {
      run_planned(ctx, [&](Context& on, Arena& scratch) {
        classifier_loss(on, {tx, tw, tt, V, scale, losses, d_x, d_w, scratch});
      });
      EXPECT_EQ(values_of(ctx, losses), values_of(ctx, only));
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_x), exact.d_x, derived_tolerance(naive.d_x, exact.d_x)));
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_w), plus(exact.d_weight, 0.25, times),
                               derived_tolerance(naive.d_weight, exact.d_weight)));
    }
    const auto rows = values_of(ctx, d_w);
    for (std::int64_t i = V * C; i < Vp * C; ++i)
      ASSERT_EQ(rows[static_cast<std::size_t>(i)], 0.25f) << "a padded row got a gradient";
    const auto got = values_of(ctx, losses), moved = values_of(ctx, d_x);
    for (std::int64_t n = 0; n < N; ++n) {
      if (targets[static_cast<std::size_t>(n)] >= 0) continue;
      EXPECT_EQ(got[static_cast<std::size_t>(n)], 0.0f);
      for (std::int64_t c = 0; c < C; ++c) EXPECT_EQ(moved[static_cast<std::size_t>(n * C + c)], 0.0f);
    }
  }
}

TEST_P(Head, AWeightOfTheLossIsAFactorOfItsScale) {
  const std::int64_t N = 9, C = 8, V = 21, Vp = 32;
  const Tensor x = pool.floats(normal(N * C, 1), {N, C}), w = pool.floats(normal(Vp * C, 2), {Vp, C}),
               targets = pool.integers(some_targets(N, V, true), {N});
  std::vector<std::vector<float>> results;
  for (const bool weighted : {false, true}) {
    const Tensor losses = pool.poisoned(DType::f32, {N}), d_x = pool.poisoned(DType::f32, {N, C}),
                 d_w = pool.zeros(DType::f32, {Vp, C}), weight = pool.floats({8.0f}, {1});
    run_planned(ctx, [&](Context& on, Arena& scratch) {
      classifier_loss(on, {x, w, targets, V, weighted ? 0.125f : 1.0f, losses, d_x, d_w, scratch, Tensor{},
                           weighted ? weight : Tensor{}});
    });
    for (const Tensor& t : {losses, d_x, d_w}) results.push_back(values_of(ctx, t));
  }
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(results[i], results[i + 3]);
}

TEST_P(Head, PaddedColumnsDoNotReachTheSoftmax) {
  const std::int64_t N = 6, C = 8, V = 5, Vp = 64;
  const auto x = normal(N * C, 1);
  auto w = normal(Vp * C, 2);
  const auto targets = some_targets(N, V, false);
  std::vector<std::vector<float>> results;
  for (const float padding : {0.0f, 1e4f}) {
    for (std::size_t i = static_cast<std::size_t>(V * C); i < w.size(); ++i) w[i] = padding;
    const Tensor losses = pool.zeros(DType::f32, {N}), d_x = pool.zeros(DType::f32, {N, C}),
                 d_w = pool.zeros(DType::f32, {Vp, C});
    const Tensor tx = pool.floats(x, {N, C}), tw = pool.floats(w, {Vp, C}), tt = pool.integers(targets, {N});
    run_planned(ctx, [&](Context& on, Arena& scratch) {
      classifier_loss(on, {tx, tw, tt, V, 1.0f, losses, d_x, d_w, scratch});
    });
    results.push_back(values_of(ctx, losses));
    results.push_back(values_of(ctx, d_x));
  }
  EXPECT_EQ(results[0], results[2]);
  EXPECT_EQ(results[1], results[3]);
}

TEST_P(Head, LargeLogitsStayFinite) {
  const std::int64_t N = 2, C = 1, V = 3;
  const std::vector<float> x{1.0f, -1.0f}, w{3e4f, -3e4f, 2.9e4f};
  const Tensor losses = pool.poisoned(DType::f32, {N});
  const Tensor tx = pool.floats(x, {N, C}), tw = pool.floats(w, {V, C}),
               tt = pool.integers(std::vector<std::int32_t>{0, 0}, {N});
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    classifier_loss(on, {tx, tw, tt, V, 1.0f, losses, Tensor{}, Tensor{}, scratch});
  });
  EXPECT_EQ(values_of(ctx, losses), (std::vector<float>{0.0f, 6e4f}));
}

// One feature, so that a logit is one exact product and equal weights give equal logits.
TEST_P(Head, GreedyIsTheFirstOfTheLargestLogits) {
  for (const auto& shape : {std::pair<std::int64_t, std::int64_t>{11, 16}, {2000, 2048}, {700, 701}}) {
    const std::int64_t V = shape.first, Vp = shape.second;
    std::vector<float> w(static_cast<std::size_t>(Vp), 9.0f);  // the padding would win
    for (std::int64_t v = 0; v < V; ++v) w[static_cast<std::size_t>(v)] = static_cast<float>((v * 37 + 3) % 8) - 4;
    std::vector<std::int32_t> targets, want;
    std::vector<float> x;
    const auto best = static_cast<std::int32_t>(std::max_element(w.begin(), w.begin() + V) - w.begin()),
               least = static_cast<std::int32_t>(std::min_element(w.begin(), w.begin() + V) - w.begin());
    for (std::int64_t n = 0; n < V; ++n) {
      const bool upwards = n % 2 == 0;
      x.push_back(upwards ? 1.5f : -0.5f);
      targets.push_back(n % 5 == 4 ? -1 : static_cast<std::int32_t>(n % 3 == 0 ? (upwards ? best : least) : n));
      want.push_back(targets.back() == (upwards ? best : least) ? 1 : 0);
    }
    const Tensor tx = pool.floats(x, {V, 1}), tw = pool.floats(w, {Vp, 1}), tt = pool.integers(targets, {V});
    const Tensor losses = pool.poisoned(DType::f32, {V}),
                 greedy = pool.integers(std::vector<std::int32_t>(static_cast<std::size_t>(V), 7), {V});
    run_planned(ctx, [&](Context& on, Arena& scratch) {
      classifier_loss(on, {tx, tw, tt, V, 1.0f, losses, Tensor{}, Tensor{}, scratch, greedy});
    });
    std::vector<std::int32_t> got(static_cast<std::size_t>(V));
    ctx.copy(got.data(), Device::cpu, greedy.data, greedy.device, got.size() * sizeof(std::int32_t));
    ctx.synchronize();
    EXPECT_EQ(got, want) << V << " of " << Vp;
  }
}

// A vocabulary so wide that the rows go through in several chunks, the last of them short.
TEST_P(Head, ChunksJoin) {
  const std::int64_t N = 130, C = 2, V = 131100, Vp = 131136;
  ASSERT_EQ(classifier_chunk_rows(N, Vp), 128);
  const auto x = normal(N * C, 1), w = normal(Vp * C, 2);
  const auto targets = some_targets(N, V, true);
  const auto exact = oracle::classifier(as<double>(x), as<double>(w), targets, C, V, 0.01);
  const auto naive = oracle::classifier(x, w, targets, C, V, 0.01f);
  const Tensor tx = pool.floats(x, {N, C}), tw = pool.floats(w, {Vp, C}), tt = pool.integers(targets, {N});
  const Tensor losses = pool.poisoned(DType::f32, {N}), d_x = pool.poisoned(DType::f32, {N, C}),
               d_w = pool.zeros(DType::f32, {Vp, C});
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    classifier_loss(on, {tx, tw, tt, V, 0.01f, losses, d_x, d_w, scratch});
  });
  EXPECT_TRUE(near_in_norm(values_of(ctx, losses), exact.losses, derived_tolerance(naive.losses, exact.losses)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_x), exact.d_x, derived_tolerance(naive.d_x, exact.d_x)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_w), exact.d_weight, derived_tolerance(naive.d_weight, exact.d_weight)));
}

SFA_ON_EVERY_DEVICE(Head);

TEST(ClassifierRounding, LogitsAndActivationGradientsAreBf16) {
  Context ctx(Device::cpu);
  ctx.round_bf16 = true;
  Pool pool(ctx);
  const std::int64_t N = 7, C = 24, V = 50, Vp = 64;
  const auto x = rounded(normal(N * C, 1)), w = rounded(normal(Vp * C, 2, 0.3f));
  const auto targets = some_targets(N, V, true);
  // Loss of the rounded logits, and only those, in double.
  auto logits = as<double>(rounded(oracle::linear(x, w, {}, N, C, Vp)));
  std::vector<double> identity(static_cast<std::size_t>(Vp * Vp));
  for (std::int64_t v = 0; v < Vp; ++v) identity[static_cast<std::size_t>(v * Vp + v)] = 1.0;
  const auto want = oracle::classifier(logits, identity, targets, Vp, V, 0.5);
  const Tensor tx = pool.floats(x, {N, C}), tw = pool.floats(w, {Vp, C}), tt = pool.integers(targets, {N});
  const Tensor losses = pool.zeros(DType::f32, {N}), d_x = pool.zeros(DType::f32, {N, C}),
               d_w = pool.zeros(DType::f32, {Vp, C});
  run_planned(ctx, [&](Context& on, Arena& scratch) {
    classifier_loss(on, {tx, tw, tt, V, 0.5f, losses, d_x, d_w, scratch});
  });
  EXPECT_TRUE(near_in_norm(values_of(ctx, losses), want.losses, 1e-6));
  std::vector<float> d_logits(want.d_x.begin(), want.d_x.end());
  const auto through =
      oracle::linear_backward(as<double>(rounded(d_logits)), as<double>(x), as<double>(w), {}, N, C, Vp);
  EXPECT_TRUE(all_bf16(values_of(ctx, d_x)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_x), through.x, kUnitBf16 / 2));
  EXPECT_FALSE(all_bf16(values_of(ctx, d_w)));
  EXPECT_TRUE(near_in_norm(values_of(ctx, d_w), through.weight, kUnitBf16 / 16));
}

}  // namespace
}  // namespace sfa::test
