#include "ops/linear/linear.h"

#include <algorithm>

#include "core/device_cuda.h"
#include "gpu/twins.h"

namespace sfa::test {
namespace {

struct Shape {
  std::int64_t N, I, O;
};
constexpr Shape kShapes[] = {{1, 8, 8},     {17, 64, 192}, {127, 48, 40},    {128, 256, 384},
                             {129, 17, 33}, {1000, 33, 8}, {1000, 128, 512}, {4097, 64, 257}};

class LinearGpu : public GpuTest {};

TEST_F(LinearGpu, ForwardMatchesCpu) {
  for (DType type : kFloatTypes)
    for (const auto& [N, I, O] : kShapes)
      for (bool with_bias : {true, false}) {
        use(type);
        SCOPED_TRACE(fmt::format("{} N={} I={} O={} bias={}", name_of(type), N, I, O, with_bias));
        const Twin x = random({N, I}), w = random({O, I}, 0.1f), b = random({O}), y = output({N, O});
        linear_forward(cpu_, {x.cpu.t, w.cpu.t, with_bias ? b.cpu.t : Tensor{}, y.cpu.t, Tensor{}});
        linear_forward(*gpu_, {x.gpu.t, w.gpu.t, with_bias ? b.gpu.t : Tensor{}, y.gpu.t, Tensor{}});
        EXPECT_LE(error(y), type == DType::f32 ? f32_tolerance(I) : bf16_tolerance());
      }
}

TEST_F(LinearGpu, GeluForwardMatchesCpu) {
  for (DType type : kFloatTypes)
    for (const auto& [N, I, O] : kShapes) {
      use(type);
      SCOPED_TRACE(fmt::format("{} N={} I={} O={}", name_of(type), N, I, O));
      const Twin x = random({N, I}), w = random({O, I}, 0.3f), b = random({O}), y = output({N, O}),
                 pre = output({N, O});
      linear_forward(cpu_, {x.cpu.t, w.cpu.t, b.cpu.t, y.cpu.t, pre.cpu.t});
      linear_forward(*gpu_, {x.gpu.t, w.gpu.t, b.gpu.t, y.gpu.t, pre.gpu.t});
      EXPECT_LE(error(pre), type == DType::f32 ? f32_tolerance(I) : bf16_tolerance());
      // The CPU applies gelu to the unrounded value; where the GPU has to apply it to the rounded one, a second
      // rounding enters.
      EXPECT_LE(error(y), type == DType::f32 ? 2 * f32_tolerance(I) : bf16_tolerance(2));
    }
}

TEST_F(LinearGpu, BackwardAccumulatesAndMatchesCpu) {
  for (DType type : kFloatTypes)
    for (DType grad_type : kFloatTypes)
      for (const auto& [N, I, O] : kShapes)
        for (bool through_gelu : {false, true}) {
          if (type == DType::f32 && grad_type == DType::bf16)
            continue;  // no such products in cuBLASLt, and no use for them
          use(type);
          SCOPED_TRACE(fmt::format("{} grad {} N={} I={} O={} gelu={}", name_of(type), name_of(grad_type), N, I, O,
                                   through_gelu));
          const Twin d_y = random({N, O}), x = random({N, I}), w = random({O, I}, 0.1f), pre = random({N, I}),
                     d_x = output({N, I});
          const Twin d_w = random({O, I}, 1.0f, grad_type), d_b = random({O}, 1.0f, grad_type),
                     d_pre_b = random({I}, 1.0f, grad_type);
          const auto run = [&](Context& ctx, Arena& scratch, Owned Twin::*side) {
            linear_backward(
                ctx, {(d_y.*side).t, (x.*side).t, (w.*side).t, through_gelu ? (pre.*side).t : Tensor{}, (d_x.*side).t,
                      (d_w.*side).t, (d_b.*side).t, scratch, through_gelu ? (d_pre_b.*side).t : Tensor{}});
          };
          for (int turn = 0; turn < 2; ++turn) {
            on_cpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::cpu); });
            on_gpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::gpu); });
          }
          // The CPU keeps parameters' gradients in f32: bf16 gradients are rounded after each of two additions.
          const double grad_tolerance = grad_type == DType::f32 ? f32_tolerance(N) : bf16_tolerance(2);
          EXPECT_LE(error(d_w), grad_tolerance);
          EXPECT_LE(error(d_b), grad_tolerance);
          if (through_gelu) {
            EXPECT_LE(error(d_pre_b), grad_tolerance + (type == DType::f32 ? 0 : bf16_tolerance(2)));
          }
          EXPECT_LE(error(d_x), type == DType::f32 ? 2 * f32_tolerance(O) : bf16_tolerance(2));
        }
}

// Large enough that algorithms are timed against each other: whichever wins, the bits are the same.
TEST_F(LinearGpu, TwoContextsGiveTheSameBits) {
  constexpr std::int64_t N = 4096, I = 768, O = 1024;
  for (DType type : kFloatTypes) {
    std::vector<std::byte> first;
    for (int run = 0; run < 2; ++run) {
      gpu_ = std::make_unique<Context>(Device::cuda);
      use(type);
      const Twin x = random({N, I}), w = random({O, I}, 0.1f), b = random({O}), y = output({N, O}),
                 pre = output({N, O});
      const Twin d_y = random({N, O}), d_x = output({N, I}), pre_of_x = random({N, I});
      const Twin d_w = random({O, I}, 1.0f, DType::f32), d_b = random({O}, 1.0f, DType::f32),
                 d_pre_b = random({I}, 1.0f, DType::f32);
      on_gpu([&](Context& ctx, Arena& scratch) {
        linear_forward(ctx, {x.gpu.t, w.gpu.t, b.gpu.t, y.gpu.t, pre.gpu.t});
        linear_backward(ctx, {d_y.gpu.t, x.gpu.t, w.gpu.t, pre_of_x.gpu.t, d_x.gpu.t, d_w.gpu.t, d_b.gpu.t, scratch,
                              d_pre_b.gpu.t});
      });
      std::vector<std::byte> all = gpu_bytes(d_x);
      for (const Twin* t : {&d_w, &d_b, &d_pre_b, &y, &pre})
        for (std::byte byte : gpu_bytes(*t)) all.push_back(byte);
      if (run == 0)
        first = all;
      else
        EXPECT_TRUE(first == all);
    }
  }
}

// A resumed run takes the algorithms of the run before it.
TEST_F(LinearGpu, SavedAlgorithmsAreTakenAgain) {
  constexpr std::int64_t N = 4096, I = 768, O = 1024;
  std::string saved;
  std::vector<std::byte> first;
  for (int run = 0; run < 3; ++run) {
    gpu_ = std::make_unique<Context>(Device::cuda);
    use(DType::bf16);
    const Twin x = random({N, I}), w = random({O, I}, 0.1f), b = random({O}), y = output({N, O});
    if (run == 1) {
      EXPECT_TRUE(cuda_ops::restore_products(gpu_->cuda(), saved));
      EXPECT_EQ(cuda_ops::saved_products(gpu_->cuda()), saved) << "kept before they are used, too";
    }
    if (run == 2) {
      EXPECT_FALSE(cuda_ops::restore_products(gpu_->cuda(), "another library\n" + saved));
      EXPECT_FALSE(cuda_ops::restore_products(gpu_->cuda(), saved + "1 2 3\n"));
      EXPECT_FALSE(cuda_ops::restore_products(gpu_->cuda(), ""));
    }
    on_gpu([&](Context& ctx, Arena&) { linear_forward(ctx, {x.gpu.t, w.gpu.t, b.gpu.t, y.gpu.t, Tensor{}}); });
    const std::string now = cuda_ops::saved_products(gpu_->cuda());
    EXPECT_EQ(std::count(now.begin(), now.end(), '\n'), 2) << now;
    if (run == 0) {
      saved = now;
      first = gpu_bytes(y);
    }
    if (run == 1) {
      EXPECT_EQ(now, saved);
    }
    EXPECT_TRUE(first == gpu_bytes(y)) << "run " << run;
  }
}

// Large products try several algorithms when their shape is first seen, on the real operands: what the gradient held
// before must still be in it.
TEST_F(LinearGpu, FirstUseOfALargeShapeAccumulatesToo) {
  for (DType grad_type : kFloatTypes) {
    use(DType::bf16);
    SCOPED_TRACE(name_of(grad_type));
    const std::int64_t N = 2048, I = 1032, O = 1544;
    const Twin d_y = random({N, O}), x = random({N, I}), w = random({O, I}, 0.1f), d_x = output({N, I});
    const Twin d_w = random({O, I}, 100.0f, grad_type);
    const auto run = [&](Context& ctx, Arena& scratch, Owned Twin::*side) {
      linear_backward(
          ctx, {(d_y.*side).t, (x.*side).t, (w.*side).t, Tensor{}, (d_x.*side).t, (d_w.*side).t, Tensor{}, scratch});
    };
    on_cpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::cpu); });
    on_gpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::gpu); });
    EXPECT_LE(error(d_x), bf16_tolerance(2));
    EXPECT_LE(error(d_w), grad_type == DType::bf16 ? bf16_tolerance() : f32_tolerance(N));
  }
}

}  // namespace
}  // namespace sfa::test
