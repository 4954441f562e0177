// Maps of heads as one batch of products against the CPU, on columns of packed rows as a model has them: queries and
// keys of Qwen3's widths, ragged sizes, every type of activations and gradients; and twice the same bits.
#include "ops/head_map/head_map.h"

#include "gpu/twins.h"

namespace sfa::test {
namespace {

struct Shape {
  std::int64_t N, heads, D;
};
constexpr Shape kShapes[] = {{1, 2, 8}, {33, 3, 10}, {257, 4, 64}, {1000, 16, 128}, {515, 8, 128}, {64, 1, 32}};

class HeadMapGpu : public GpuTest {
 protected:
  // The heads in rows of 8 columns more on either side, which stay what they are.
  static Tensor heads_of(const Tensor& rows) { return rows.slice(1, 8, rows.dim(1) - 16); }
};

TEST_F(HeadMapGpu, MatchesCpuAndAccumulates) {
  for (const DType type : kFloatTypes)
    for (const DType grad_type : kFloatTypes)
      for (const auto& [N, heads, D] : kShapes)
        for (const bool shared : {true, false}) {
          if (type == DType::f32 && grad_type == DType::bf16) continue;  // as in a linear layer
          use(type);
          SCOPED_TRACE(fmt::format("{} grad {} N={} heads={} D={} shared={}", name_of(type), name_of(grad_type), N,
                                   heads, D, shared));
          const std::int64_t wide = heads * D + 16, maps = shared ? D : heads * D;
          const Twin x = random({N, wide}), d_y = random({N, wide}), w = random({maps, D}, 0.1f), y = random({N, wide}),
                     d_x = random({N, wide}), d_w = random({maps, D}, 1.0f, grad_type);
          const auto run = [&](Context& ctx, Arena& scratch, Owned Twin::*side) {
            head_map_forward(ctx, {heads_of((x.*side).t), (w.*side).t, heads_of((y.*side).t)});
            head_map_backward(ctx, {heads_of((d_y.*side).t), heads_of((x.*side).t), (w.*side).t,
                                    heads_of((d_x.*side).t), (d_w.*side).t, scratch});
          };
          for (int turn = 0; turn < 2; ++turn) {
            on_cpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::cpu); });
            on_gpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::gpu); });
          }
          EXPECT_LE(error(y), type == DType::f32 ? f32_tolerance(D) : bf16_tolerance());
          EXPECT_LE(error(d_x), type == DType::f32 ? f32_tolerance(D) : bf16_tolerance());
          EXPECT_LE(error(d_w), grad_type == DType::f32 ? f32_tolerance(N * heads) : bf16_tolerance(2));
          // What lies beside the heads is on both sides what it was.
          const auto rows = values_of(*gpu_, y.gpu.t), before = values_of(cpu_, y.cpu.t);
          for (std::int64_t n = 0; n < N; ++n)
            for (const std::int64_t c : {std::int64_t{0}, std::int64_t{7}, wide - 8, wide - 1})
              ASSERT_EQ(rows[static_cast<std::size_t>(n * wide + c)], before[static_cast<std::size_t>(n * wide + c)]);
        }
}

TEST_F(HeadMapGpu, TwoRunsGiveTheSameBits) {
  for (const bool shared : {true, false}) {
    std::vector<std::byte> first;
    for (int run = 0; run < 2; ++run) {
      gpu_ = std::make_unique<Context>(Device::cuda);
      use(DType::bf16);
      const std::int64_t N = 4096, heads = 16, D = 128, maps = shared ? D : heads * D;
      const Twin x = random({N, heads * D}), d_y = random({N, heads * D}), w = random({maps, D}, 0.1f),
                 d_x = output({N, heads * D}), d_w = random({maps, D}, 1.0f, DType::f32);
      on_gpu([&](Context& ctx, Arena& scratch) {
        head_map_backward(ctx, {d_y.gpu.t, x.gpu.t, w.gpu.t, d_x.gpu.t, d_w.gpu.t, scratch});
      });
      std::vector<std::byte> all = gpu_bytes(d_x);
      for (const std::byte b : gpu_bytes(d_w)) all.push_back(b);
      if (run == 0) first = all;
      EXPECT_EQ(all, first);
    }
  }
}

}  // namespace
}  // namespace sfa::test
