#include "optim/adamw.h"

#include "gpu/twins.h"
#include "optim/guard.h"

namespace sfa::test {
namespace {

class AdamWGpu : public GpuTest {
 protected:
  template <class T>
  T read(const Context& ctx, const Tensor& t) {
    T s;
    ctx.copy(&s, Device::cpu, t.data, t.device, sizeof(s));
    ctx.synchronize();
    return s;
  }
  StepState state_of(const Context& ctx, const Tensor& t) { return read<StepState>(ctx, t); }
  template <class T>
  Twin bytes_twin(const T& s) {
    std::vector<std::uint8_t> bytes(sizeof(s));
    std::memcpy(bytes.data(), &s, sizeof(s));
    return integers({static_cast<std::int64_t>(bytes.size())}, bytes);
  }
  Twin state(const StepState& s) { return bytes_twin(s); }
  Twin guard_of(const GuardState& g) { return bytes_twin(g); }
};

TEST_F(AdamWGpu, StepsMatchCpu) {
  for (DType type : kFloatTypes)
    for (DType grad_type : kFloatTypes)
      for (std::int64_t n : {1, 3, 1000, 100003})
        for (float max_norm : {0.0f, 0.5f}) {
          use(type);
          SCOPED_TRACE(fmt::format("{} grad {} n={} max_norm={}", name_of(type), name_of(grad_type), n, max_norm));
          const Twin master = random({n}, 1.0f, DType::f32), m = random({n}, 0.1f, DType::f32), param = output({n});
          const Twin v = filled({n}, std::vector<float>(static_cast<std::size_t>(n), 0.01f), DType::f32);
          for (int step = 1; step <= 3; ++step) {
            const Twin grad = random({n}, 0.3f, grad_type);
            const Twin partials = integers({kNormPartials}, std::vector<std::int64_t>(kNormPartials, 0));
            const Twin s = state({.lr = 1e-2f, .max_norm = max_norm});
            const Twin guard = guard_of({.updates = step + 3, .events = {}});
            const auto run = [&](Context& ctx, Owned Twin::*side) {
              gradient_norm_accumulate(ctx, (grad.*side).t, (partials.*side).t);
              decide_step(ctx, {.partials = (partials.*side).t, .state = (s.*side).t, .guard = (guard.*side).t});
              adamw_update(ctx, {.weight_decay = 0.1f,
                                 .grad = (grad.*side).t,
                                 .master = (master.*side).t,
                                 .m = (m.*side).t,
                                 .v = (v.*side).t,
                                 .param = (param.*side).t,
                                 .state = (s.*side).t});
            };
            run(cpu_, &Twin::cpu);
            run(*gpu_, &Twin::gpu);
            const StepState a = state_of(*gpu_, s.gpu.t), b = state_of(cpu_, s.cpu.t);
            EXPECT_NEAR(a.grad_norm, b.grad_norm, 1e-6 * b.grad_norm);
            EXPECT_NEAR(a.clip, b.clip, 1e-6);
            EXPECT_EQ(a.skip, 0);
            EXPECT_EQ(a.correction1, b.correction1);
            EXPECT_EQ(a.correction2, b.correction2);
          }
          for (const Twin* t : {&master, &m, &v}) EXPECT_LE(error(*t), f32_tolerance(1));
          EXPECT_LE(error(param), type == DType::f32 ? f32_tolerance(1) : bf16_tolerance());
        }
}

TEST_F(AdamWGpu, ANormThatIsNotFiniteSkipsTheUpdate) {
  use(DType::f32);
  const std::int64_t n = 1000;
  std::vector<float> bad = normal(n, 1);
  bad[999] = std::numeric_limits<float>::quiet_NaN();
  const Twin grad = filled({n}, bad, DType::f32), master = random({n}), m = random({n}), v = random({n});
  const Twin partials = integers({kNormPartials}, std::vector<std::int64_t>(kNormPartials, 0)),
             s = state({.lr = 1.0f, .max_norm = 1.0f}), guard = guard_of({});
  const std::vector<std::byte> before = gpu_bytes(master);
  gradient_norm_accumulate(*gpu_, grad.gpu.t, partials.gpu.t);
  decide_step(*gpu_, {.partials = partials.gpu.t, .state = s.gpu.t, .guard = guard.gpu.t});
  adamw_update(*gpu_, {.grad = grad.gpu.t,
                       .master = master.gpu.t,
                       .m = m.gpu.t,
                       .v = v.gpu.t,
                       .param = master.gpu.t,
                       .state = s.gpu.t});
  EXPECT_EQ(state_of(*gpu_, s.gpu.t).skip, 1);
  EXPECT_TRUE(before == gpu_bytes(master));
}

// Masters or none, average or none, rounding to nearest or stochastic: what is stored agrees, and rounding to the bit.
TEST_F(AdamWGpu, EveryVariantMatchesCpu) {
  for (const bool has_master : {true, false})
    for (const bool average : {true, false})
      for (const bool stochastic : {true, false})
        for (const std::int64_t n : {3, 1000, 100003}) {
          if (!has_master && !stochastic) continue;
          use(DType::bf16);
          SCOPED_TRACE(fmt::format("master {} ema {} stochastic {} n={}", has_master, average, stochastic, n));
          const Twin param = random({n}), m = random({n}, 0.1f, DType::f32), grad = random({n}, 0.3f, DType::bf16),
                     master = random({n}, 1.0f, DType::f32), ema = random({n}, 1.0f, DType::f32),
                     v = filled({n}, std::vector<float>(static_cast<std::size_t>(n), 0.01f), DType::f32),
                     s = state({.lr = 1e-2f, .correction1 = 1.5f, .correction2 = 2.0f, .update = 7});
          const auto run = [&](Context& ctx, Owned Twin::*side) {
            adamw_update(ctx, {.weight_decay = 0.1f,
                               .grad = (grad.*side).t,
                               .master = has_master ? (master.*side).t : Tensor{},
                               .m = (m.*side).t,
                               .v = (v.*side).t,
                               .param = (param.*side).t,
                               .state = (s.*side).t,
                               .ema = average ? (ema.*side).t : Tensor{},
                               .ema_decay = 0.99f,
                               .stochastic = stochastic,
                               .seed = 11,
                               .first = 64});
          };
          run(cpu_, &Twin::cpu);
          run(*gpu_, &Twin::gpu);
          for (const Twin* t : {&master, &m, &v}) EXPECT_LE(error(*t), f32_tolerance(1));
          EXPECT_LE(error(ema), has_master ? f32_tolerance(1) : bf16_tolerance());
          EXPECT_LE(error(param), bf16_tolerance());
        }
}

TEST_F(AdamWGpu, StochasticRoundingGivesTheSameBits) {
  use(DType::bf16);
  for (const std::int64_t n : {1, 5, 4096, 100003})
    for (const std::int64_t update : {0, 1, 1000000007}) {
      const Twin from = random({n}, 1.0f, DType::f32), to = output({n});
      const auto run = [&](Context& ctx, Owned Twin::*side) {
        round_weights(ctx, {(from.*side).t, (to.*side).t, true, 77, update});
      };
      run(cpu_, &Twin::cpu);
      run(*gpu_, &Twin::gpu);
      EXPECT_EQ(values_of(*gpu_, to.gpu.t), values_of(cpu_, to.cpu.t)) << n << " " << update;
    }
}

// The guard decides the same on both, about the same sums: windows of any length, spikes, NaN, limits, noise.
TEST_F(AdamWGpu, TheGuardDecidesAsOnTheCpu) {
  for (const std::int64_t window : {2, 7, 128, 1024}) {
    use(DType::f32);
    const Twin guard = guard_of({}),
               places = filled({2, window}, std::vector<float>(2 * static_cast<std::size_t>(window)), DType::f32);
    int skipped = 0;
    for (std::int64_t step = 1; step <= window + 40; ++step) {
      const auto draw = [&](std::uint32_t k) {
        return static_cast<float>(philox(9, kPurposeTest, static_cast<std::uint64_t>(step), k)[0] % 64u) / 64.0f;
      };
      const bool odd = step > window && step % 5 == 0;
      double loss = 3.0 + 0.1 * static_cast<double>(draw(0)), square = 1.0 + static_cast<double>(draw(1));
      if (odd && step % 3 == 0) loss = 50;
      if (odd && step % 3 == 1) square = 1e6;
      if (odd && step % 3 == 2) square = std::numeric_limits<double>::quiet_NaN();
      std::vector<std::int64_t> sums(kNormPartials), small(kNormPartials);
      sums[5] = std::bit_cast<std::int64_t>(square);
      small[9] = std::bit_cast<std::int64_t>(0.3 * square);
      const Twin partials = integers({kNormPartials}, sums), small_partials = integers({kNormPartials}, small),
                 total = integers({1}, std::vector<std::int64_t>{std::bit_cast<std::int64_t>(loss * 64)}),
                 s = state({.max_norm = 1, .loss_scale = 1.0 / 64, .step = step});
      const auto run = [&](Context& ctx, Owned Twin::*side) {
        decide_step(ctx, {.partials = (partials.*side).t,
                          .loss = (total.*side).t,
                          .state = (s.*side).t,
                          .guard = (guard.*side).t,
                          .window = (places.*side).t,
                          .small_partials = (small_partials.*side).t,
                          .rule = {.guard = {.spike = GuardAction::skip}, .noise = {64, 256}}});
      };
      run(cpu_, &Twin::cpu);
      run(*gpu_, &Twin::gpu);
      const StepState a = state_of(*gpu_, s.gpu.t), b = state_of(cpu_, s.cpu.t);
      skipped += a.skip;
      EXPECT_EQ(a.skip, b.skip) << "step " << step << " of window " << window;
      EXPECT_EQ(a.event, b.event);
      EXPECT_EQ(a.clip, b.clip);
      EXPECT_EQ(a.update, b.update);
    }
    EXPECT_GE(skipped, 6) << window;
    EXPECT_EQ(values_of(*gpu_, places.gpu.t), values_of(cpu_, places.cpu.t));
    const GuardState a = read<GuardState>(*gpu_, guard.gpu.t), b = read<GuardState>(cpu_, guard.cpu.t);
    EXPECT_EQ(a.updates, b.updates);
    EXPECT_EQ(a.skipped, b.skipped);
    EXPECT_EQ(a.seen, b.seen);
    EXPECT_NEAR(a.noise_square, b.noise_square, 1e-12 * std::fabs(b.noise_square));
    EXPECT_NEAR(a.noise_trace, b.noise_trace, 1e-12 * std::fabs(b.noise_trace));
    for (std::int64_t i = 0; i < kGuardEvents; ++i) {
      EXPECT_EQ(a.events[i].step, b.events[i].step);
      EXPECT_EQ(a.events[i].cause, b.events[i].cause);
      EXPECT_EQ(a.events[i].action, b.events[i].action);
      EXPECT_EQ(a.events[i].median, b.events[i].median);
      EXPECT_NEAR(a.events[i].score, b.events[i].score, 1e-5 * std::fabs(b.events[i].score));
    }
  }
}

TEST_F(AdamWGpu, TheTensorIsFoundAsOnTheCpu) {
  for (DType grad_type : kFloatTypes) {
    use(grad_type);
    const std::vector<std::int64_t> spans{0, 100, 128, 1, 192, 70000, 70208, 513};
    std::vector<float> grad = normal(70208 + 513, 3);
    for (std::int64_t i = 0; i < 100; ++i) grad[static_cast<std::size_t>(i)] *= 1000;
    grad[192 + 69999] = std::numeric_limits<float>::infinity();
    grad[70208] = std::numeric_limits<float>::quiet_NaN();
    const Twin g = filled({static_cast<std::int64_t>(grad.size())}, grad, grad_type), table = integers({4, 2}, spans),
               sums = integers({4, kLocateParts}, std::vector<std::int64_t>(4 * kLocateParts, -1));
    for (const std::int64_t event : {-1, 3}) {
      const Twin s = state({.event = event}), guard = guard_of({});
      const auto run = [&](Context& ctx, Owned Twin::*side) {
        const LocateGradient args{(g.*side).t, (table.*side).t, (sums.*side).t, (s.*side).t, (guard.*side).t};
        locate_gradient(ctx, args);
        note_gradients(ctx, args);
      };
      run(cpu_, &Twin::cpu);
      run(*gpu_, &Twin::gpu);
      const GuardEvent a = read<GuardState>(*gpu_, guard.gpu.t).events[3],
                       b = read<GuardState>(cpu_, guard.cpu.t).events[3];
      EXPECT_EQ(b.first_nonfinite, event < 0 ? -1 : 2);
      EXPECT_EQ(a.first_nonfinite, b.first_nonfinite);
      EXPECT_EQ(a.nonfinite_tensors, b.nonfinite_tensors);
      EXPECT_EQ(b.nonfinite_tensors, event < 0 ? 0 : 2);
      EXPECT_EQ(a.largest, b.largest);
      EXPECT_EQ(b.largest, event < 0 ? -1 : 0);
      EXPECT_NEAR(a.largest_norm, b.largest_norm, 1e-6 * b.largest_norm);
    }
  }
}

}  // namespace
}  // namespace sfa::test
