// The load balance of features and their gates on a GPU beside the CPU: rows of every width, as parts of wider ones,
// every type of activations and gradients; and twice the same bits.
#include "gpu/twins.h"
#include "ops/balance/balance.h"
#include "ops/feature_gate/feature_gate.h"

namespace sfa::test {
namespace {

struct Shape {
  std::int64_t B, T, heads, D, k, wide;
};
constexpr Shape kShapes[] = {{1, 1, 1, 4, 1, 4},          {2, 37, 3, 12, 4, 40},    {2, 300, 12, 64, 8, 2304},
                             {1, 1500, 8, 128, 16, 3072}, {2, 33, 2, 256, 8, 512},  {1, 600, 3, 96, 12, 290},
                             {3, 50, 5, 20, 5, 101},      {2, 2048, 12, 64, 8, 768}};

class FeatureBalanceGpu : public GpuTest {
 protected:
  static Tensor heads_of(const Tensor& rows, const Shape& s) {
    return rows.slice(2, 0, s.heads * s.D).split_last(s.heads);
  }

  // k features a row, ascending; some are kept far more often than others.
  Twin supports(const Shape& s) {
    std::vector<std::uint8_t> kept;
    for (std::int64_t n = 0; n < s.B * s.T * s.heads; ++n)
      for (std::int64_t i = 0; i < s.k; ++i)
        kept.push_back(static_cast<std::uint8_t>(i * (s.D / s.k) + n * n % std::max<std::int64_t>(1, s.D / s.k - 1)));
    return integers({s.B, s.T, s.heads, s.k}, kept);
  }
};

TEST_F(FeatureBalanceGpu, BalanceMatchesCpu) {
  for (const DType type : kFloatTypes)
    for (const Shape& s : kShapes) {
      use(type);
      SCOPED_TRACE(fmt::format("{} {} x {} x {} x {} k {} in {}", name_of(type), s.B, s.T, s.heads, s.D, s.k, s.wide));
      const Twin x = random({s.B, s.T, s.wide}), d_x = random({s.B, s.T, s.wide}, 1e-3f), kept = supports(s),
                 total = integers({1}, std::vector<std::int64_t>{0});
      const auto run = [&](Context& ctx, Arena& scratch, Owned Twin::*side) {
        balance_backward(ctx, {heads_of((x.*side).t, s), (kept.*side).t, 0.01f, heads_of((d_x.*side).t, s),
                               (total.*side).t, scratch});
      };
      on_cpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::cpu); });
      on_gpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::gpu); });
      EXPECT_LE(error(d_x), type == DType::f32 ? f32_tolerance(s.D) : bf16_tolerance());
      double sums[2];
      std::memcpy(&sums[0], total.cpu.t.data, sizeof(double));
      const auto bytes = gpu_bytes(total);
      std::memcpy(&sums[1], bytes.data(), sizeof(double));
      EXPECT_GT(sums[0], 0);
      EXPECT_NEAR(sums[1], sums[0], 1e-5 * sums[0]);
    }
}

TEST_F(FeatureBalanceGpu, GatesMatchCpuAndAccumulate) {
  for (const DType type : kFloatTypes)
    for (const DType grad_type : kFloatTypes)
      for (const auto& [N, C, row] : std::vector<std::array<std::int64_t, 3>>{
               {1, 1, 1}, {33, 96, 130}, {700, 1536, 2304}, {20000, 128, 192}, {257, 50, 61}}) {
        if (type == DType::f32 && grad_type == DType::bf16) continue;
        use(type);
        SCOPED_TRACE(fmt::format("{} grad {} {} x {} of {}", name_of(type), name_of(grad_type), N, C, row));
        const Twin rows = random({N, row}), d_rows = random({N, row}), w = random({C}), kept = output({N, C}),
                   d_w = random({C}, 1.0f, grad_type);
        const auto run = [&](Context& ctx, Arena& scratch, Owned Twin::*side) {
          feature_gate_forward(ctx, {(rows.*side).t, (w.*side).t, (kept.*side).t});
          feature_gate_backward(ctx, {(d_rows.*side).t, (w.*side).t, (kept.*side).t, (d_w.*side).t, scratch});
        };
        on_cpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::cpu); });
        on_gpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::gpu); });
        EXPECT_EQ(error(rows), 0) << "one product, rounded once";
        EXPECT_EQ(error(d_rows), 0);
        EXPECT_EQ(error(kept), 0);
        EXPECT_LE(error(d_w), grad_type == DType::f32 ? f32_tolerance(N) : bf16_tolerance());
      }
}

TEST_F(FeatureBalanceGpu, TwoRunsGiveTheSameBits) {
  std::vector<std::byte> first;
  for (int run = 0; run < 2; ++run) {
    gpu_ = std::make_unique<Context>(Device::cuda);
    use(DType::bf16);
    const Shape s{4, 4096, 12, 64, 8, 2304};
    const Twin x = random({s.B, s.T, s.wide}), d_x = random({s.B, s.T, s.wide}), kept = supports(s),
               total = integers({1}, std::vector<std::int64_t>{0}), w = random({s.heads * s.D}),
               before = random({s.B * s.T, s.heads * s.D}), d_w = random({s.heads * s.D}, 1.0f, DType::f32);
    on_gpu([&](Context& ctx, Arena& scratch) {
      balance_backward(ctx, {heads_of(x.gpu.t, s), kept.gpu.t, 0.01f, heads_of(d_x.gpu.t, s), total.gpu.t, scratch});
      feature_gate_backward(ctx, {d_x.gpu.t.view({s.B * s.T, s.wide}), w.gpu.t, before.gpu.t, d_w.gpu.t, scratch});
    });
    std::vector<std::byte> all = gpu_bytes(d_x);
    for (const Twin* t : {&total, &d_w})
      for (const std::byte b : gpu_bytes(*t)) all.push_back(b);
    if (run == 0) first = all;
    EXPECT_EQ(all, first);
  }
}

}  // namespace
}  // namespace sfa::test
