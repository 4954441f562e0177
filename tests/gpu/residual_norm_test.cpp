#include "ops/residual_norm/residual_norm.h"

#include "gpu/twins.h"

namespace sfa::test {
namespace {

constexpr std::int64_t kRows[] = {1, 17, 127, 1000, 5000};
constexpr std::int64_t kColumns[] = {1, 17, 64, 100, 256, 504, 768, 1000, 1024, 1600, 2056, 4096, 8192};

// Wide rows need few of them: the CPU's side takes its time.
bool too_many(std::int64_t N, std::int64_t C) {
  return (N > 127 && C > 1024) || (N > 1000 && C != 768);
}

class ResidualNormGpu : public GpuTest {};

TEST_F(ResidualNormGpu, ForwardMatchesCpu) {
  for (DType type : kFloatTypes)
    for (std::int64_t N : kRows)
      for (std::int64_t C : kColumns)
        for (bool with_x : {true, false}) {
          if (too_many(N, C)) continue;
          use(type);
          SCOPED_TRACE(fmt::format("{} N={} C={} x={}", name_of(type), N, C, with_x));
          const Twin residual = random({N, C}), x = random({N, C}), w = random({C}), b = random({C});
          const Twin sum = output({N, C}), y = output({N, C}), mean = output({N}, DType::f32),
                     rstd = output({N}, DType::f32);
          const auto run = [&](Context& ctx, Owned Twin::*s) {
            residual_norm_forward(ctx, {(residual.*s).t, with_x ? (x.*s).t : Tensor{}, (w.*s).t, (b.*s).t, 1e-5f,
                                        with_x ? (sum.*s).t : Tensor{}, (y.*s).t, (mean.*s).t, (rstd.*s).t});
          };
          run(cpu_, &Twin::cpu);
          run(*gpu_, &Twin::gpu);
          if (with_x) {
            EXPECT_EQ(error(sum), 0);
          }
          EXPECT_LE(error(mean), 100 * f32_tolerance(C));  // a small difference of large sums
          EXPECT_LE(error(rstd), f32_tolerance(C));
          EXPECT_LE(error(y), type == DType::f32 ? f32_tolerance(C) : bf16_tolerance());
        }
}

TEST_F(ResidualNormGpu, BackwardAccumulatesAndMatchesCpu) {
  for (DType type : kFloatTypes)
    for (DType grad_type : kFloatTypes)
      for (std::int64_t N : kRows)
        for (std::int64_t C : kColumns) {
          if (C == 1 || too_many(N, C)) continue;  // the gradient is zero up to rounding: nothing to compare
          use(type);
          SCOPED_TRACE(fmt::format("{} grad {} N={} C={}", name_of(type), name_of(grad_type), N, C));
          const Twin r = random({N, C}), d_y = random({N, C}), d_next = random({N, C}), w = random({C}),
                     b = random({C});
          const Twin y = output({N, C}), d_r = output({N, C}), mean = output({N}, DType::f32),
                     rstd = output({N}, DType::f32);
          const Twin d_w = random({C}, 1.0f, grad_type), d_b = random({C}, 1.0f, grad_type);
          const Twin d_x_b = random({C}, 1.0f, grad_type);
          const bool with_next = N != 17, in_place = N == 1000;
          const auto run = [&](Context& ctx, Arena& scratch, Owned Twin::*s) {
            const Tensor& to = in_place ? (d_next.*s).t : (d_r.*s).t;
            residual_norm_forward(
                ctx, {(r.*s).t, Tensor{}, (w.*s).t, (b.*s).t, 1e-5f, Tensor{}, (y.*s).t, (mean.*s).t, (rstd.*s).t});
            residual_norm_backward(ctx, {(d_y.*s).t, with_next ? (d_next.*s).t : Tensor{}, (r.*s).t, (w.*s).t,
                                         (mean.*s).t, (rstd.*s).t, to, (d_w.*s).t, (d_b.*s).t, scratch, (d_x_b.*s).t});
          };
          for (int turn = 0; turn < 2; ++turn) {
            on_cpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::cpu); });
            on_gpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::gpu); });
          }
          const double grad_tolerance = grad_type == DType::f32 ? 2 * f32_tolerance(N + C) : bf16_tolerance(2);
          EXPECT_LE(error(d_w), grad_tolerance);
          EXPECT_LE(error(d_b), grad_tolerance);
          // Sums of values that are rounded themselves.
          EXPECT_LE(error(d_x_b), type == DType::f32 ? 2 * grad_tolerance : bf16_tolerance(2));
          EXPECT_LE(error(in_place ? d_next : d_r), type == DType::f32 ? 2 * f32_tolerance(C) : bf16_tolerance(2));
        }
}

// RMS norm: neither bias nor mean.
TEST_F(ResidualNormGpu, RmsNormMatchesCpu) {
  for (DType type : kFloatTypes)
    for (DType grad_type : kFloatTypes)
      for (std::int64_t N : kRows)
        for (std::int64_t C : {1, 17, 64, 100, 256, 504, 768, 1000, 1024, 1600, 2048, 2056, 2560, 3000, 4096, 5120}) {
          if (too_many(N, C)) continue;
          use(type);
          SCOPED_TRACE(fmt::format("{} grad {} N={} C={}", name_of(type), name_of(grad_type), N, C));
          const Twin residual = random({N, C}), x = random({N, C}), d_y = random({N, C}), d_next = random({N, C}),
                     w = random({C});
          const Twin sum = output({N, C}), y = output({N, C}), d_r = output({N, C}), rstd = output({N}, DType::f32);
          const Twin d_w = random({C}, 1.0f, grad_type), d_x_b = random({C}, 1.0f, grad_type);
          const bool with_x = N != 127, with_next = N != 17, in_place = N == 1000, with_bias = N % 2 == 1;
          const auto run = [&](Context& ctx, Arena& scratch, Owned Twin::*s) {
            residual_norm_forward(ctx, {(residual.*s).t, with_x ? (x.*s).t : Tensor{}, (w.*s).t, Tensor{}, 1e-6f,
                                        with_x ? (sum.*s).t : Tensor{}, (y.*s).t, Tensor{}, (rstd.*s).t});
            residual_norm_backward(
                ctx, {(d_y.*s).t, with_next ? (d_next.*s).t : Tensor{}, with_x ? (sum.*s).t : (residual.*s).t, (w.*s).t,
                      Tensor{}, (rstd.*s).t, in_place ? (d_next.*s).t : (d_r.*s).t, (d_w.*s).t, Tensor{}, scratch,
                      with_bias ? (d_x_b.*s).t : Tensor{}});
          };
          for (int turn = 0; turn < 2; ++turn) {
            on_cpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::cpu); });
            on_gpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::gpu); });
          }
          if (with_x) {
            EXPECT_EQ(error(sum), 0);
          }
          const double tolerance = type == DType::f32 ? f32_tolerance(C) : bf16_tolerance();
          const double grad_tolerance = grad_type == DType::f32 ? 2 * f32_tolerance(N + C) : bf16_tolerance(2);
          EXPECT_LE(error(rstd), f32_tolerance(C));
          EXPECT_LE(error(y), tolerance);
          EXPECT_LE(error(d_w), grad_tolerance);
          if (with_bias && C > 1) {  // of one feature the gradient is zero up to rounding
            EXPECT_LE(error(d_x_b), type == DType::f32 ? 2 * grad_tolerance : bf16_tolerance(2));
          }
          if (C > 1 || with_next) {
            EXPECT_LE(error(in_place ? d_next : d_r), 2 * tolerance);
          }
        }
}

TEST_F(ResidualNormGpu, TwoRunsGiveTheSameBits) {
  std::vector<std::byte> first;
  for (int run = 0; run < 2; ++run) {
    use(DType::bf16);
    const Twin r = random({5000, 768}), d_y = random({5000, 768}), w = random({768}), b = random({768}),
               y = output({5000, 768});
    const Twin d_r = output({5000, 768}), mean = output({5000}, DType::f32), rstd = output({5000}, DType::f32);
    const Twin d_w = random({768}, 1.0f, DType::f32), d_b = random({768}, 1.0f, DType::f32);
    on_gpu([&](Context& ctx, Arena& scratch) {
      residual_norm_forward(ctx,
                            {r.gpu.t, Tensor{}, w.gpu.t, b.gpu.t, 1e-5f, Tensor{}, y.gpu.t, mean.gpu.t, rstd.gpu.t});
      residual_norm_backward(ctx, {d_y.gpu.t, Tensor{}, r.gpu.t, w.gpu.t, mean.gpu.t, rstd.gpu.t, d_r.gpu.t, d_w.gpu.t,
                                   d_b.gpu.t, scratch});
    });
    std::vector<std::byte> all = gpu_bytes(d_w);
    for (const Twin* t : {&d_b, &d_r, &y})
      for (std::byte byte : gpu_bytes(*t)) all.push_back(byte);
    if (run == 0)
      first = all;
    else
      EXPECT_TRUE(first == all);
  }
}

TEST_F(ResidualNormGpu, TwoRunsOfRmsNormGiveTheSameBits) {
  for (std::int64_t C : {1024, 2560, 4096}) {
    std::vector<std::byte> first;
    for (int run = 0; run < 2; ++run) {
      use(DType::bf16);
      const Twin r = random({3000, C}), d_y = random({3000, C}), w = random({C}), y = output({3000, C}),
                 d_r = output({3000, C}), rstd = output({3000}, DType::f32), d_w = random({C}, 1.0f, DType::f32);
      on_gpu([&](Context& ctx, Arena& scratch) {
        residual_norm_forward(ctx,
                              {r.gpu.t, Tensor{}, w.gpu.t, Tensor{}, 1e-6f, Tensor{}, y.gpu.t, Tensor{}, rstd.gpu.t});
        residual_norm_backward(ctx, {d_y.gpu.t, Tensor{}, r.gpu.t, w.gpu.t, Tensor{}, rstd.gpu.t, d_r.gpu.t, d_w.gpu.t,
                                     Tensor{}, scratch});
      });
      std::vector<std::byte> all = gpu_bytes(d_w);
      for (const Twin* t : {&d_r, &y})
        for (std::byte byte : gpu_bytes(*t)) all.push_back(byte);
      if (run == 0)
        first = all;
      else
        EXPECT_TRUE(first == all) << C;
    }
  }
}

}  // namespace
}  // namespace sfa::test
