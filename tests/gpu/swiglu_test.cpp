#include "ops/swiglu/swiglu.h"

#include "gpu/twins.h"

namespace sfa::test {
namespace {

class SwigluGpu : public GpuTest {};

TEST_F(SwigluGpu, MatchesCpu) {
  for (DType type : kFloatTypes)
    for (std::int64_t N : {1, 17, 333})
      for (std::int64_t F : {1, 7, 64, 100, 1000, 3072, 6144}) {
        use(type);
        SCOPED_TRACE(fmt::format("{} N={} F={}", name_of(type), N, F));
        const Twin gate_up = random({N, 2 * F}, 3.0f), d_y = random({N, F});
        const Twin y = output({N, F}), d = output({N, 2 * F}), again = output({N, F});
        const bool in_place = N == 17;
        const auto run = [&](Context& ctx, Owned Twin::*s) {
          swiglu_forward(ctx, (gate_up.*s).t, (y.*s).t);
          swiglu_backward(ctx, {.gate_up = (gate_up.*s).t,
                                .d_y = (d_y.*s).t,
                                .d_gate_up = in_place ? (gate_up.*s).t : (d.*s).t,
                                .y = N == 1 ? Tensor{} : (again.*s).t});
        };
        run(cpu_, &Twin::cpu);
        run(*gpu_, &Twin::gpu);
        const double tolerance = type == DType::f32 ? 1e-6 : bf16_tolerance();
        EXPECT_LE(error(y), tolerance);
        EXPECT_LE(error(in_place ? gate_up : d), tolerance);
        if (N != 1) {
          EXPECT_TRUE(gpu_bytes(again) == gpu_bytes(y)) << "the forward's bits";
        }
      }
}

TEST_F(SwigluGpu, LargeGatesSaturate) {
  use(DType::bf16);
  std::vector<float> values(16 * 16);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = i % 16 < 8 ? (i % 2 == 0 ? 1.0f : -1.0f) * std::ldexp(1.0f, static_cast<int>(i / 2)) : 1.0f;
  const Twin gate_up = filled({16, 16}, values, DType::bf16), y = output({16, 8}), d = output({16, 16}),
             d_y = filled({16, 8}, std::vector<float>(128, 1.0f), DType::bf16);
  swiglu_forward(*gpu_, gate_up.gpu.t, y.gpu.t);
  swiglu_backward(*gpu_, {.gate_up = gate_up.gpu.t, .d_y = d_y.gpu.t, .d_gate_up = d.gpu.t});
  swiglu_forward(cpu_, gate_up.cpu.t, y.cpu.t);
  swiglu_backward(cpu_, {.gate_up = gate_up.cpu.t, .d_y = d_y.cpu.t, .d_gate_up = d.cpu.t});
  const auto got = values_of(*gpu_, d.gpu.t), want = values_of(cpu_, d.cpu.t);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-30 + std::fabs(want[i]) / 128) << i;
  EXPECT_LE(error(y), bf16_tolerance());
}

}  // namespace
}  // namespace sfa::test
