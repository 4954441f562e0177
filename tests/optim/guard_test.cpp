// The guard: what is a spike and what is not, what each action does to the state, which tensor is named; stochastic
// rounding, the average of weights and the noise scale against their formulas.
#include "optim/guard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/rng.h"
#include "optim/optimizer.h"
#include "optim/update_rule.h"
#include "support/compare.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

// Steps of given loss and norm through decide_step.
class GuardTest : public DeviceTest {
 protected:
  void start(const GuardOptions& options, std::int64_t window) {
    rule_.guard = options;
    guard_ = pool.zeros(DType::u8, {static_cast<std::int64_t>(sizeof(GuardState))});
    window_ = window > 0 ? pool.zeros(DType::f32, {2, window}) : Tensor{};
    step_ = 0;
  }
  StepState step(double loss, double norm) {
    std::vector<std::int64_t> sums(kNormPartials);
    sums[static_cast<std::size_t>(step_) % sums.size()] = std::bit_cast<std::int64_t>(norm * norm);
    const StepState host{.lr = 1, .max_norm = 0, .loss_scale = 0.125, .step = ++step_};
    std::vector<std::uint8_t> bytes(sizeof host);
    std::memcpy(bytes.data(), &host, sizeof host);
    const Tensor state = pool.integers(bytes, {static_cast<std::int64_t>(sizeof host)});
    decide_step(ctx, {.partials = pool.integers(sums, {kNormPartials}),
                      .loss = pool.integers(std::vector<std::int64_t>{std::bit_cast<std::int64_t>(8 * loss)}, {1}),
                      .state = state,
                      .guard = guard_,
                      .window = window_,
                      .rule = rule_});
    return read<StepState>(state);
  }
  // Values around 4 and 1 whose median and deviation are known: 0, +-1, +-2, ... steps of 1/64.
  void fill(std::int64_t window) {
    for (std::int64_t i = 0; i < window; ++i) {
      const double away = static_cast<double>(i - window / 2) / 64;
      EXPECT_EQ(step(4 + away, 1 + away / 4).skip, 0) << i;
    }
  }
  GuardState guard() { return read<GuardState>(guard_); }
  template <class T>
  T read(const Tensor& t) {
    T s;
    const auto bytes = elements<std::uint8_t>(ctx, t);
    std::memcpy(&s, bytes.data(), sizeof s);
    return s;
  }

  DecisionRule rule_;
  Tensor guard_, window_;
  std::int64_t step_ = 0;
};

TEST_P(GuardTest, NotFiniteIsLeftOutWhateverTheNumberIs) {
  start({}, 0);
  EXPECT_EQ(step(3, 1).skip, 0);
  for (const auto& [loss, norm, cause] :
       std::vector<std::tuple<float, float, GuardCause>>{{kNaN, 1.0f, GuardCause::loss_not_finite},
                                                         {kInf, 1.0f, GuardCause::loss_not_finite},
                                                         {-kInf, kNaN, GuardCause::loss_not_finite},
                                                         {3.0f, kNaN, GuardCause::gradient_not_finite},
                                                         {3.0f, kInf, GuardCause::gradient_not_finite}}) {
    const StepState s = step(static_cast<double>(loss), static_cast<double>(norm));
    EXPECT_NE(s.skip, 0);
    const GuardEvent e = guard().events[s.event];
    EXPECT_EQ(e.cause, cause) << loss << " " << norm;
    EXPECT_EQ(e.action, GuardAction::skip);
    EXPECT_EQ(e.step, step_);
  }
  const StepState s = step(3, 1);
  EXPECT_EQ(s.skip, 0);
  EXPECT_EQ(s.update, 2) << "an update that was left out does not count in AdamW's t";
  EXPECT_FLOAT_EQ(s.correction1, static_cast<float>(1 / (1 - 0.9 * 0.9)));
  EXPECT_EQ(guard().skipped, 5);
  EXPECT_EQ(guard().in_a_row, 0);
}

double middle_of(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  const std::size_t n = x.size();
  return n % 2 == 1 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

TEST_P(GuardTest, ASpikeIsMeasuredByMedianAndDeviation) {
  for (const std::int64_t window : {15, 16, 129, 256}) {
    std::vector<double> values, away;
    for (std::int64_t i = 0; i < window; ++i) values.push_back(static_cast<double>(i - window / 2) / 64);
    const double center = middle_of(values);
    for (double x : values) away.push_back(std::fabs(x - center));
    const double sigma = 1.4826 * middle_of(away);
    for (const bool of_loss : {true, false})
      for (const double part : {-3.0, 0.99, 1.01}) {
        start({.spike = GuardAction::skip, .loss_threshold = 6, .grad_norm_threshold = 10}, window);
        fill(window);
        const double median = of_loss ? 4 + center : 1 + center / 4;
        const double scale = of_loss ? std::max(sigma, 0.01 * median) : std::max(sigma / 4, 0.1 * median);
        const double x = std::max(0.0, median + part * (of_loss ? 6 : 10) * scale);
        const StepState s = of_loss ? step(x, 1) : step(4, x);
        EXPECT_EQ(s.skip, part > 1 ? 1 : 0) << window << " " << part << "; what falls is welcome";
        if (part < 1) continue;
        const GuardEvent e = guard().events[0];
        EXPECT_EQ(e.cause, of_loss ? GuardCause::loss_spike : GuardCause::gradient_spike);
        EXPECT_NEAR(e.median, median, 1e-5 * median);
        EXPECT_NEAR(e.score, part * (of_loss ? 6 : 10), 1e-3);
      }
  }
}

TEST_P(GuardTest, TheFloorKeepsCalmRunsCalm) {
  start({.spike = GuardAction::skip}, 8);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(step(2.0, 0.5).skip, 0);  // deviation 0
  EXPECT_EQ(step(2.0 * (1 + 0.06 * 0.9), 0.5 * (1 + 1.0 * 0.9)).skip, 0);
  EXPECT_NE(step(2.0 * (1 + 0.06 * 1.1), 0.5).skip, 0);
  EXPECT_NE(step(2.0, 0.5 * (1 + 1.0 * 1.1)).skip, 0);
}

TEST_P(GuardTest, NothingIsASpikeBeforeTheWindowIsFullOrWithoutThreshold) {
  start({.spike = GuardAction::skip}, 4);
  for (const double loss : {1.0, 100.0, 1e4, 1e6}) EXPECT_EQ(step(loss, loss).skip, 0);
  start({.spike = GuardAction::skip, .loss_threshold = 0, .grad_norm_threshold = 0}, 4);
  for (int i = 0; i < 4; ++i) step(1, 1);
  EXPECT_EQ(step(1e6, 1e6).skip, 0);
  start({.spike = GuardAction::off}, 4);
  for (int i = 0; i < 4; ++i) step(1, 1);
  EXPECT_EQ(step(1e6, 1e6).skip, 0);
}

TEST_P(GuardTest, WhatIsLeftOutStaysOutOfTheWindow) {
  start({.spike = GuardAction::skip, .max_skips = 1000}, 8);
  fill(8);
  const auto before = values_of(ctx, window_);
  for (int i = 0; i < 20; ++i) EXPECT_NE(step(100, 1).skip, 0);
  EXPECT_NE(step(static_cast<double>(kNaN), 1).skip, 0);
  EXPECT_EQ(values_of(ctx, window_), before);
  EXPECT_EQ(step(4.125, 1).skip, 0);
  EXPECT_EQ(guard().seen, 9);
  auto after = before;
  after[0] = 4.125f;  // the oldest goes
  after[8] = 1.0f;
  EXPECT_EQ(values_of(ctx, window_), after);
}

TEST_P(GuardTest, StopAndRollbackHaltTheDevice) {
  for (const GuardAction action : {GuardAction::stop, GuardAction::rollback}) {
    start({.nonfinite = action}, 0);
    EXPECT_EQ(step(3, 1).skip, 0);
    EXPECT_NE(step(3, static_cast<double>(kNaN)).skip, 0);
    EXPECT_EQ(guard().halted, action);
    for (int i = 0; i < 30; ++i) EXPECT_NE(step(3, 1).skip, 0) << "the host has not looked yet";
    EXPECT_EQ(guard().updates, 1);
    EXPECT_EQ(guard().skipped, 1) << "one event, however late the host is";
    EXPECT_EQ(guard().events[0].step, 2);
  }
}

TEST_P(GuardTest, TooManySkipsInARowStop) {
  start({.max_skips = 3}, 0);
  for (int i = 0; i < 3; ++i) step(static_cast<double>(kNaN), 1);
  EXPECT_EQ(guard().halted, GuardAction::off);
  step(3, 1);
  for (int i = 0; i < 3; ++i) step(static_cast<double>(kNaN), 1);
  EXPECT_EQ(guard().halted, GuardAction::off) << "one good step between";
  step(static_cast<double>(kNaN), 1);
  EXPECT_EQ(guard().halted, GuardAction::stop);
  EXPECT_EQ(guard().events[6].in_a_row, 4);
}

TEST_P(GuardTest, TheTensorIsNamed) {
  ParameterList list;
  for (const auto& [name, n] :
       std::vector<std::pair<const char*, std::int64_t>>{{"a", 70}, {"b", 5}, {"c", 3000}, {"d", 64}})
    list.add({.name = name, .shape = {n}, .decay = false, .init = Init::zeros, .hf = {}});
  const std::int64_t n = list.flat_size();
  std::vector<float> grad(static_cast<std::size_t>(n));
  const auto at = [&](const char* name, std::int64_t i) -> float& {
    return grad[static_cast<std::size_t>(list.find(name)->offset + i)];
  };
  at("b", 1) = 3;
  at("b", 2) = 4;
  at("c", 2999) = kNaN;
  at("d", 63) = kInf;
  const std::vector<float> weights(grad.size(), 1.0f);
  const ParameterBuffers buffers{pool.floats(weights, {n}),
                                 pool.floats(grad, {n}),
                                 pool.floats(weights, {n}),
                                 pool.zeros(DType::f32, {n}),
                                 pool.zeros(DType::f32, {n}),
                                 {},
                                 {0, n},
                                 true};
  Arena arena("optimizer", ctx.device());
  { const Optimizer counting(list, buffers, {}, arena); }
  arena.bind();
  Optimizer optimizer(list, buffers, {}, arena);
  optimizer.step(ctx, 1, 0.1f);
  const GuardEvent e = optimizer.read_guard(ctx).events[0];
  EXPECT_EQ(e.cause, GuardCause::gradient_not_finite);
  EXPECT_EQ(e.first_nonfinite, 2);
  EXPECT_EQ(e.nonfinite_tensors, 2);
  EXPECT_EQ(e.largest, 1);
  EXPECT_EQ(e.largest_norm, 5.0f);
  EXPECT_EQ(values_of(ctx, buffers.params), weights);
  EXPECT_TRUE(optimizer.all_finite(ctx));
  for (const Tensor* t : {&buffers.master, &buffers.m, &buffers.v}) {
    const float bad = kInf;
    const Tensor last = t->slice(0, list.find("d")->offset, 1);
    float was = 0;
    ctx.copy(&was, Device::cpu, last.data, t->device, sizeof was);
    ctx.copy(last.data, t->device, &bad, Device::cpu, sizeof bad);
    EXPECT_FALSE(optimizer.all_finite(ctx));
    ctx.copy(last.data, t->device, &was, Device::cpu, sizeof was);
    ctx.synchronize();
  }
  EXPECT_TRUE(optimizer.all_finite(ctx));
}

// Gradients of batches drawn from a normal distribution of known mean and covariance give back tr(Sigma) / |G|^2.
TEST_P(GuardTest, NoiseScaleIsTraceOverSquare) {
  ParameterList list;
  const std::int64_t n = 2048, micro = 16, batch = 64;  // a multiple of the alignment: no padding
  list.add({.name = "w", .shape = {n}, .decay = false, .init = Init::zeros, .hf = {}});
  const double mean = 0.1, deviation = 2.0;  // of every element and sample
  const double expected = deviation * deviation / (mean * mean);
  const ParameterBuffers buffers{pool.zeros(DType::f32, {n}),
                                 pool.zeros(DType::f32, {n}),
                                 pool.zeros(DType::f32, {n}),
                                 pool.zeros(DType::f32, {n}),
                                 pool.zeros(DType::f32, {n}),
                                 {},
                                 {0, n},
                                 true};
  Arena arena("optimizer", ctx.device());
  const OptimizerOptions options{.noise = {static_cast<double>(micro), static_cast<double>(batch)}};
  { const Optimizer counting(list, buffers, options, arena); }
  arena.bind();
  Optimizer optimizer(list, buffers, options, arena);
  EXPECT_EQ(noise_scale(optimizer.read_guard(ctx)), 0.0);
  for (std::int64_t step = 1; step <= 100; ++step) {
    std::vector<float> sum(static_cast<std::size_t>(n));
    for (std::int64_t m = 0; m < batch / micro; ++m) {
      // A micro-step adds the sum over its samples of g / batch.
      const auto noise = normal(n, 1000 * static_cast<std::uint64_t>(step) + static_cast<std::uint64_t>(m));
      const double share = static_cast<double>(micro) / static_cast<double>(batch);
      for (std::size_t i = 0; i < sum.size(); ++i)
        sum[i] += static_cast<float>(
            share * (mean + deviation / std::sqrt(static_cast<double>(micro)) * static_cast<double>(noise[i])));
      const Tensor now = pool.floats(sum, {n});
      ctx.copy(buffers.gradients.data, ctx.device(), now.data, ctx.device(), static_cast<std::size_t>(now.bytes()));
      if (m == 0) optimizer.measure_small_batch(ctx);
    }
    optimizer.step(ctx, step, 0.0f);
  }
  // |G|^2 = 20.5 is estimated a step with a deviation of at most 7.7 (that of (B |G_B|^2 - b |G_b|^2) / (B - b)), and
  // averaged over about 90: 4 %; three of those.
  EXPECT_NEAR(noise_scale(optimizer.read_guard(ctx)), expected, 0.12 * expected);
}

SFA_ON_EVERY_DEVICE(GuardTest);

TEST(StochasticRounding, IsUnbiasedAndKeepsWhatIsExact) {
  for (const float x : {1.0f, -0.5f, 0.0f, 3.0f, kInf, -kInf})
    for (const std::uint32_t bits : {0u, 0x7fffffffu, 0xffffffffu}) EXPECT_EQ(stochastic_bf16(x, bits), x);
  EXPECT_TRUE(std::isnan(stochastic_bf16(kNaN, 0xffffffffu)));
  const float largest = std::numeric_limits<float>::max();
  EXPECT_TRUE(std::isfinite(stochastic_bf16(largest, 0xffffffffu)));
  constexpr int kDraws = 200000;
  for (const float x : {1.003f, -1.003f, 0.1f, 12345.678f, 1e-30f}) {
    const float low = std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & 0xffff0000u);
    const float high = std::bit_cast<float>((std::bit_cast<std::uint32_t>(x) & 0xffff0000u) + 0x10000u);
    const double p =
        (static_cast<double>(x) - static_cast<double>(low)) / (static_cast<double>(high) - static_cast<double>(low));
    int ups = 0;
    for (int i = 0; i < kDraws; ++i) {
      const float y = stochastic_bf16(x, philox4(3, kPurposeRounding, 1, static_cast<std::uint32_t>(i)).v[i % 4]);
      ASSERT_TRUE(y == low || y == high);
      ups += y == high ? 1 : 0;
    }
    EXPECT_NEAR(static_cast<double>(ups) / kDraws, p, 4 * std::sqrt(p * (1 - p) / kDraws) + 1.0 / 65536) << x;
  }
}

// Without masters, updates far below half a bf16 step move the weights as far as they add up to; rounding to nearest
// would lose every one of them.
TEST(StochasticRounding, SmallUpdatesAreNotLost) {
  Context ctx(Device::cpu);
  ctx.round_bf16 = true;
  Pool pool(ctx);
  constexpr std::int64_t n = 4096;
  constexpr int kSteps = 100;
  const Tensor param = pool.floats(std::vector<float>(n, 1.0f), {n}), m = pool.zeros(DType::f32, {n}),
               v = pool.zeros(DType::f32, {n}), grad = pool.floats(std::vector<float>(n, -1.0f), {n}),
               ema = pool.floats(std::vector<float>(n, 1.0f), {n});
  for (int t = 1; t <= kSteps; ++t) {
    const StepState s{.lr = 1e-4f,
                      .correction1 = static_cast<float>(1 / (1 - std::pow(0.9, t))),
                      .correction2 = static_cast<float>(1 / (1 - std::pow(0.95, t))),
                      .update = t};
    const Tensor state = pool.zeros(DType::u8, {static_cast<std::int64_t>(sizeof s)});
    std::memcpy(state.data, &s, sizeof s);
    adamw_update(ctx, {.grad = grad,
                       .master = {},
                       .m = m,
                       .v = v,
                       .param = param,
                       .state = state,
                       .ema = ema,
                       .ema_decay = 0.5f,
                       .stochastic = true,
                       .seed = 5});
  }
  const auto w = values_of(ctx, param);
  EXPECT_TRUE(all_bf16(w));
  double mean = 0;
  for (float x : w) mean += static_cast<double>(x) / n;
  // Every update is +1e-4 (the gradient is constant); a bf16 step above 1 is 1/128.
  EXPECT_NEAR(mean, 1 + kSteps * 1e-4, 4 * std::sqrt(kSteps * 1e-4 / 128 / n));
  EXPECT_FALSE(all_bf16(values_of(ctx, ema)));
}

TEST(AverageOfWeights, FollowsTheRecurrence) {
  for (int t = 1; t < 200; ++t)
    EXPECT_FLOAT_EQ(ema_weight(t, 0.9f), 1 - std::min(0.9f, static_cast<float>(1 + t) / static_cast<float>(10 + t)));
  Context ctx(Device::cpu);
  Pool pool(ctx);
  constexpr std::int64_t n = 100;
  const auto start = normal(n, 1);
  const Tensor w = pool.floats(start, {n}), m = pool.zeros(DType::f32, {n}), v = pool.zeros(DType::f32, {n}),
               ema = pool.floats(start, {n});
  std::vector<double> expected(start.begin(), start.end());
  for (int t = 1; t <= 30; ++t) {
    const StepState s{.lr = 0.01f, .skip = t == 7 ? 1 : 0, .update = t};
    const Tensor state = pool.zeros(DType::u8, {static_cast<std::int64_t>(sizeof s)});
    std::memcpy(state.data, &s, sizeof s);
    adamw_update(ctx, {.grad = pool.floats(normal(n, 50 + static_cast<std::uint64_t>(t)), {n}),
                       .master = w,
                       .m = m,
                       .v = v,
                       .param = w,
                       .state = state,
                       .ema = ema,
                       .ema_decay = 0.8f});
    const double decay = std::min(0.8, (1.0 + t) / (10.0 + t));
    const auto now = values_of(ctx, w);
    if (t != 7)
      for (std::size_t i = 0; i < expected.size(); ++i)
        expected[i] = decay * expected[i] + (1 - decay) * static_cast<double>(now[i]);
  }
  EXPECT_TRUE(near_in_norm(values_of(ctx, ema), expected, 1e-6));
}

}  // namespace
}  // namespace sfa::test
