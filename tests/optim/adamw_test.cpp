// AdamW, global norm and clipping against the formulas in double, and the ranges of an optimizer's step.
#include "optim/adamw.h"

#include <gtest/gtest.h>

#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "support/compare.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

constexpr float kBeta1 = 0.9f, kBeta2 = 0.95f, kEps = 1e-8f;

// The update rule as its paper states it, over any scalar.
template <class T>
struct Adam {
  std::vector<T> w, m, v;
  void step(const std::vector<float>& grad, int t, T lr, T clip, T decay) {
    const T b1 = static_cast<T>(kBeta1), b2 = static_cast<T>(kBeta2), c1 = 1 - std::pow(b1, static_cast<T>(t)),
            c2 = 1 - std::pow(b2, static_cast<T>(t));
    for (std::size_t i = 0; i < w.size(); ++i) {
      const T g = static_cast<T>(grad[i]) * clip;
      m[i] = b1 * m[i] + (1 - b1) * g;
      v[i] = b2 * v[i] + (1 - b2) * g * g;
      w[i] -= lr * ((m[i] / c1) / (std::sqrt(v[i] / c2) + static_cast<T>(kEps)) + decay * w[i]);
    }
  }
};

class AdamWTest : public DeviceTest {
 protected:
  Tensor state_tensor(const StepState& s) {
    std::vector<std::uint8_t> bytes(sizeof(s));
    std::memcpy(bytes.data(), &s, sizeof(s));
    return pool.integers(bytes, {static_cast<std::int64_t>(sizeof(s))});
  }
  void decide(const Tensor& partials, const Tensor& state) {
    decide_step(ctx, {.partials = partials,
                      .state = state,
                      .guard = pool.zeros(DType::u8, {static_cast<std::int64_t>(sizeof(GuardState))})});
  }
  StepState read(const Tensor& t) {
    StepState s;
    const auto bytes = elements<std::uint8_t>(ctx, t);
    std::memcpy(&s, bytes.data(), sizeof(s));
    return s;
  }
};

TEST_P(AdamWTest, FollowsTheFormula) {
  for (const std::int64_t n : {1, 63, 64, 1000, 4099}) {
    for (const float decay : {0.0f, 0.1f}) {
      const auto start = normal(n, 1);
      const Tensor master = pool.floats(start, {n}), param = pool.poisoned(DType::f32, {n}),
                   m = pool.zeros(DType::f32, {n}), v = pool.zeros(DType::f32, {n});
      Adam<double> exact{as<double>(start), std::vector<double>(start.size()), std::vector<double>(start.size())};
      Adam<float> naive{start, std::vector<float>(start.size()), std::vector<float>(start.size())};
      for (int t = 1; t <= 5; ++t) {
        const auto grad = normal(n, 10 + static_cast<std::uint64_t>(t));
        const double b1 = kBeta1, b2 = kBeta2;
        const StepState s{.lr = 0.01f,
                          .correction1 = static_cast<float>(1 / (1 - std::pow(b1, t))),
                          .correction2 = static_cast<float>(1 / (1 - std::pow(b2, t))),
                          .clip = 0.5f};
        adamw_update(ctx, {.beta1 = kBeta1,
                           .beta2 = kBeta2,
                           .eps = kEps,
                           .weight_decay = decay,
                           .grad = pool.floats(grad, {n}),
                           .master = master,
                           .m = m,
                           .v = v,
                           .param = param,
                           .state = state_tensor(s)});
        exact.step(grad, t, static_cast<double>(s.lr), 0.5, static_cast<double>(decay));
        naive.step(grad, t, s.lr, 0.5f, decay);
      }
      EXPECT_TRUE(near_in_norm(values_of(ctx, master), exact.w, derived_tolerance(naive.w, exact.w)));
      EXPECT_TRUE(near_in_norm(values_of(ctx, m), exact.m, derived_tolerance(naive.m, exact.m)));
      EXPECT_TRUE(near_in_norm(values_of(ctx, v), exact.v, derived_tolerance(naive.v, exact.v)));
      EXPECT_EQ(values_of(ctx, param), values_of(ctx, master));
    }
  }
}

TEST_P(AdamWTest, ParamsMayBeTheMasterThemselves) {
  const auto start = normal(100, 1), grad = normal(100, 2);
  const Tensor apart = pool.floats(start, {100}), shared = pool.floats(start, {100}),
               param = pool.zeros(DType::f32, {100});
  for (const Tensor& master : {apart, shared})
    adamw_update(ctx, {.weight_decay = 0.1f,
                       .grad = pool.floats(grad, {100}),
                       .master = master,
                       .m = pool.zeros(DType::f32, {100}),
                       .v = pool.zeros(DType::f32, {100}),
                       .param = master.data == shared.data ? shared : param,
                       .state = state_tensor({.lr = 0.1f, .correction1 = 10, .correction2 = 20})});
  EXPECT_EQ(values_of(ctx, shared), values_of(ctx, param));
}

TEST_P(AdamWTest, NormIsThatOfAllRanges) {
  for (const std::int64_t n : {1, 1023, 1024, 1025, 100000}) {
    const auto a = normal(n, 1), b = normal(37, 2, 100.0f);
    double want = 0;
    for (const auto* range : {&a, &b})
      for (float x : *range) want += static_cast<double>(x) * x;
    want = std::sqrt(want);
    const Tensor partials = pool.zeros(DType::i64, {kNormPartials});
    gradient_norm_accumulate(ctx, pool.floats(a, {n}), partials);
    gradient_norm_accumulate(ctx, pool.floats(b, {37}), partials);
    const Tensor state = state_tensor({.lr = 0.25f, .max_norm = static_cast<float>(want / 3)});
    decide(partials, state);
    const StepState s = read(state);
    EXPECT_NEAR(s.grad_norm, want, 1e-6 * want);
    EXPECT_NEAR(s.clip, 1.0 / 3, 1e-6);
    EXPECT_EQ(s.skip, 0);
    EXPECT_EQ(s.lr, 0.25f) << "the schedule's part must stay";
  }
}

TEST_P(AdamWTest, ClippingOnlyShrinks) {
  const auto finish = [&](float max_norm) {
    const Tensor partials = pool.zeros(DType::i64, {kNormPartials}), state = state_tensor({.max_norm = max_norm});
    gradient_norm_accumulate(ctx, pool.floats({3.0f, 4.0f}, {2}), partials);
    decide(partials, state);
    return read(state);
  };
  EXPECT_EQ(finish(0.0f).clip, 1.0f) << "0 = no clipping";
  EXPECT_EQ(finish(10.0f).clip, 1.0f);
  EXPECT_NEAR(finish(1.0f).clip, 1.0f / (5.0f + 1e-6f), 1e-7);
  EXPECT_EQ(finish(1.0f).grad_norm, 5.0f);
}

TEST_P(AdamWTest, ANonFiniteGradientSkipsTheUpdate) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    auto grad = normal(500, 1);
    grad[317] = bad;
    const auto start = normal(500, 2), moments = normal(500, 3);
    const Tensor g = pool.floats(grad, {500}), w = pool.floats(start, {500}), m = pool.floats(moments, {500}),
                 v = pool.floats(moments, {500}), param = pool.floats(start, {500}),
                 partials = pool.zeros(DType::i64, {kNormPartials});
    const Tensor state = state_tensor({.lr = 1.0f, .max_norm = 1.0f});
    gradient_norm_accumulate(ctx, g, partials);
    decide(partials, state);
    EXPECT_EQ(read(state).skip, 1);
    EXPECT_FALSE(std::isfinite(read(state).grad_norm));
    adamw_update(ctx, {.weight_decay = 0.1f, .grad = g, .master = w, .m = m, .v = v, .param = param, .state = state});
    EXPECT_EQ(values_of(ctx, w), start);
    EXPECT_EQ(values_of(ctx, param), start);
    EXPECT_EQ(values_of(ctx, m), moments);
    EXPECT_EQ(values_of(ctx, v), moments);
  }
}

TEST_P(AdamWTest, AStepDecaysMatricesAloneAndClipsOverAll) {
  ParameterList list;
  list.add({.name = "a", .shape = {3, 5}, .offset = 0, .decay = true, .init = Init::normal, .std_dev = 1, .hf = {}});
  list.add({.name = "b", .shape = {7}, .offset = 0, .decay = false, .init = Init::zeros, .std_dev = 0, .hf = {}});
  list.add({.name = "c", .shape = {9}, .offset = 0, .decay = false, .init = Init::zeros, .std_dev = 0, .hf = {}});
  list.add({.name = "d", .shape = {70, 2}, .offset = 0, .decay = true, .init = Init::normal, .std_dev = 1, .hf = {}});
  const std::int64_t n = list.flat_size();
  std::vector<float> start(static_cast<std::size_t>(n)), grad(start.size());
  for (const Parameter& p : list.all())
    for (std::int64_t i = 0; i < p.numel(); ++i) {
      start[static_cast<std::size_t>(p.offset + i)] = 1.0f + static_cast<float>(i) / 8;
      grad[static_cast<std::size_t>(p.offset + i)] = static_cast<float>(i % 5) - 2.0f;
    }
  const ParameterBuffers buffers{pool.floats(start, {n}),
                                 pool.floats(grad, {n}),
                                 pool.floats(start, {n}),
                                 pool.zeros(DType::f32, {n}),
                                 pool.zeros(DType::f32, {n}),
                                 {},
                                 {0, n},
                                 true};
  Arena arena("optimizer", ctx.device());
  const OptimizerOptions options{
      .beta1 = kBeta1, .beta2 = kBeta2, .epsilon = kEps, .weight_decay = 0.5f, .max_norm = 1.0f};
  { const Optimizer counting(list, buffers, options, arena); }
  arena.bind();
  Optimizer optimizer(list, buffers, options, arena);
  optimizer.step(ctx, 1, 0.01f);
  double square = 0;
  for (float g : grad) square += static_cast<double>(g) * g;
  const StepState s = optimizer.read_state(ctx);
  EXPECT_NEAR(s.grad_norm, std::sqrt(square), 1e-5);
  const auto got = values_of(ctx, buffers.params);
  for (const Parameter& p : list.all()) {
    Adam<double> one{{}, {}, {}};
    std::vector<float> g;
    for (std::int64_t i = 0; i < p.numel(); ++i) {
      one.w.push_back(start[static_cast<std::size_t>(p.offset + i)]);
      g.push_back(grad[static_cast<std::size_t>(p.offset + i)]);
    }
    one.m = one.v = std::vector<double>(g.size());
    one.step(g, 1, 0.01, 1.0 / (std::sqrt(square) + 1e-6), p.decay ? 0.5 : 0.0);
    EXPECT_TRUE(
        near_in_norm(std::vector<float>(got.begin() + p.offset, got.begin() + p.offset + p.numel()), one.w, 1e-6))
        << p.name;
  }
  std::vector<bool> used(start.size());
  for (const Parameter& p : list.all())
    for (std::int64_t i = 0; i < p.numel(); ++i) used[static_cast<std::size_t>(p.offset + i)] = true;
  for (std::size_t i = 0; i < used.size(); ++i)
    if (!used[i]) {
      EXPECT_EQ(got[i], 0.0f) << "padding at " << i;
    }
}

SFA_ON_EVERY_DEVICE(AdamWTest);

TEST(AdamWRounding, ParamsAreRoundedAndTheMasterIsNot) {
  Context ctx(Device::cpu);
  ctx.round_bf16 = true;
  Pool pool(ctx);
  const Tensor master = pool.floats(normal(50, 1), {50}), param = pool.zeros(DType::f32, {50});
  const StepState s{.lr = 0.01f, .correction1 = 10, .correction2 = 20};
  const Tensor state = pool.zeros(DType::u8, {static_cast<std::int64_t>(sizeof(s))});
  std::memcpy(state.data, &s, sizeof(s));
  adamw_update(ctx, {.grad = pool.floats(normal(50, 2), {50}),
                     .master = master,
                     .m = pool.zeros(DType::f32, {50}),
                     .v = pool.zeros(DType::f32, {50}),
                     .param = param,
                     .state = state});
  EXPECT_FALSE(all_bf16(values_of(ctx, master)));
  EXPECT_EQ(values_of(ctx, param), rounded(values_of(ctx, master)));
}

TEST(ScheduleTest, WarmsUpThenFallsToItsEnd) {
  Schedule s{.kind = "cosine", .lr = 1.0, .min_lr = 0.1, .warmup_steps = 4, .max_steps = 104};
  for (int step = 0; step < 4; ++step) EXPECT_FLOAT_EQ(s.at(step), static_cast<float>(step + 1) / 5.0f);
  EXPECT_FLOAT_EQ(s.at(4), 1.0f);
  EXPECT_FLOAT_EQ(s.at(54), 0.55f);
  EXPECT_FLOAT_EQ(s.at(104), 0.1f);
  EXPECT_FLOAT_EQ(s.at(1000), 0.1f) << "beyond the end it stays";
  for (int step = 5; step <= 104; ++step) EXPECT_LT(s.at(step), s.at(step - 1));
  s.kind = "linear";
  EXPECT_FLOAT_EQ(s.at(29), 1.0f - 0.9f * 0.25f);
  s.kind = "constant";
  EXPECT_FLOAT_EQ(s.at(99), 1.0f);
  EXPECT_FLOAT_EQ(s.at(1), 0.4f) << "a constant rate warms up too";
  s = {.kind = "cosine", .lr = 1.0, .min_lr = 0.0, .warmup_steps = 0, .max_steps = 1};
  EXPECT_FLOAT_EQ(s.at(0), 1.0f);
}

TEST(ScheduleTest, WarmUpStableDecay) {
  Schedule s{.kind = "wsd", .lr = 1.0, .min_lr = 0.2, .warmup_steps = 3, .max_steps = 100, .decay_steps = 16};
  for (int step = 0; step < 3; ++step) EXPECT_FLOAT_EQ(s.at(step), static_cast<float>(step + 1) / 4.0f);
  for (int step = 3; step <= 84; ++step) EXPECT_EQ(s.at(step), 1.0f) << step;
  for (int step = 84; step <= 100; ++step)
    EXPECT_FLOAT_EQ(s.at(step), 1.0f - 0.8f * static_cast<float>(step - 84) / 16.0f) << step;
  EXPECT_FLOAT_EQ(s.at(1000), 0.2f) << "beyond the end it stays";
  s.decay_shape = "sqrt";
  EXPECT_EQ(s.at(84), 1.0f);
  EXPECT_FLOAT_EQ(s.at(88), 1.0f - 0.8f * 0.5f) << "a quarter of the way: half of the fall";
  EXPECT_FLOAT_EQ(s.at(93), 1.0f - 0.8f * 0.75f);
  EXPECT_FLOAT_EQ(s.at(100), 0.2f);
  // What a longer run shares with a shorter one is the same until the shorter one decays.
  Schedule longer = s;
  longer.max_steps = 200;
  for (int step = 0; step <= 84; ++step) EXPECT_EQ(longer.at(step), s.at(step)) << step;
  s.decay_steps = 97;
  EXPECT_LT(s.at(4), 1.0f) << "a decay right behind the warm-up";
}

}  // namespace
}  // namespace sfa::test
