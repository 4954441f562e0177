#include "optim/adamw.h"

#include "gpu/twins.h"

namespace sfa::test {
namespace {

class AdamWGpu : public GpuTest {
 protected:
  StepState state_of(const Context& ctx, const Tensor& t) {
    StepState s;
    ctx.copy(&s, Device::cpu, t.data, t.device, sizeof(s));
    ctx.synchronize();
    return s;
  }
  Twin state(const StepState& s) {
    std::vector<std::uint8_t> bytes(sizeof(s));
    std::memcpy(bytes.data(), &s, sizeof(s));
    return integers({static_cast<std::int64_t>(bytes.size())}, bytes);
  }
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
            const Twin s = state({.lr = 1e-2f, .correction1 = 1.5f, .correction2 = 2.0f, .max_norm = max_norm});
            const auto run = [&](Context& ctx, Owned Twin::*side) {
              gradient_norm_accumulate(ctx, (grad.*side).t, (partials.*side).t);
              gradient_norm_finish(ctx, (partials.*side).t, (s.*side).t);
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
             s = state({.lr = 1.0f, .max_norm = 1.0f});
  const std::vector<std::byte> before = gpu_bytes(master);
  gradient_norm_accumulate(*gpu_, grad.gpu.t, partials.gpu.t);
  gradient_norm_finish(*gpu_, partials.gpu.t, s.gpu.t);
  adamw_update(*gpu_, {.grad = grad.gpu.t,
                       .master = master.gpu.t,
                       .m = m.gpu.t,
                       .v = v.gpu.t,
                       .param = master.gpu.t,
                       .state = s.gpu.t});
  EXPECT_EQ(state_of(*gpu_, s.gpu.t).skip, 1);
  EXPECT_TRUE(before == gpu_bytes(master));
}

}  // namespace
}  // namespace sfa::test
