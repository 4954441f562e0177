#include "gpu/twins.h"
#include "ops/classifier/classifier.h"
#include "ops/embedding/embedding.h"

namespace sfa::test {
namespace {

class EmbeddingGpu : public GpuTest {
 protected:
  // Half of the tokens are one token, the rest spread evenly: runs of one and runs over many chunks.
  Twin tokens(std::int64_t B, std::int64_t T, std::int32_t V) {
    std::vector<std::int32_t> id = integer_values(99, B * T, V);
    for (std::size_t i = 0; i < id.size(); i += 2) id[i] = V / 2;
    return integers({B, T}, id);
  }
};

TEST_F(EmbeddingGpu, ForwardAndBackwardMatchCpu) {
  struct Case {
    std::int64_t B, T, C;
    std::int32_t V;
    bool positions;
  };
  for (DType type : kFloatTypes)
    for (DType grad_type : kFloatTypes)
      for (const auto& [B, T, C, V, positions] :
           {Case{1, 1, 8, 1, true}, Case{1, 17, 17, 5, true}, Case{2, 129, 64, 257, false},
            Case{3, 333, 768, 1000, true}, Case{1, 4097, 100, 40, true}, Case{4, 300, 1032, 5000, true}}) {
        use(type);
        SCOPED_TRACE(fmt::format("{} grad {} B={} T={} C={} V={}", name_of(type), name_of(grad_type), B, T, C, V));
        const Twin id = tokens(B, T, V), wte = random({V, C}), wpe = random({T + 3, C}), out = output({B, T, C});
        embedding_forward(cpu_, id.cpu.t, wte.cpu.t, positions ? wpe.cpu.t : Tensor{}, positions ? 2 : 0, out.cpu.t);
        embedding_forward(*gpu_, id.gpu.t, wte.gpu.t, positions ? wpe.gpu.t : Tensor{}, positions ? 2 : 0, out.gpu.t);
        EXPECT_EQ(error(out), 0);

        const Twin d_out = random({B, T, C}), d_wte = random({V, C}, 1.0f, grad_type),
                   d_wpe = random({T + 3, C}, 1.0f, grad_type);
        const auto run = [&](Context& ctx, Arena& scratch, Owned Twin::*s) {
          embedding_backward(ctx,
                             {(id.*s).t, (d_out.*s).t, (d_wte.*s).t, positions ? (d_wpe.*s).t : Tensor{}, scratch});
        };
        for (int turn = 0; turn < 2; ++turn) {
          on_cpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::cpu); });
          on_gpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::gpu); });
        }
        const double tolerance = grad_type == DType::f32 ? f32_tolerance(B * T) : bf16_tolerance(2);
        EXPECT_LE(error(d_wte), tolerance);
        EXPECT_LE(error(d_wpe), tolerance);
      }
}

TEST_F(EmbeddingGpu, TwoRunsGiveTheSameBits) {
  std::vector<std::byte> first;
  for (int run = 0; run < 2; ++run) {
    use(DType::bf16);
    const Twin id = tokens(8, 1000, 300), d_out = random({8, 1000, 256}), d_wte = random({320, 256}, 1.0f, DType::f32);
    on_gpu([&](Context& ctx, Arena& scratch) {
      embedding_backward(ctx, {id.gpu.t, d_out.gpu.t, d_wte.gpu.t, Tensor{}, scratch});
    });
    if (run == 0)
      first = gpu_bytes(d_wte);
    else
      EXPECT_TRUE(first == gpu_bytes(d_wte));
  }
}

class ClassifierGpu : public GpuTest {};

TEST_F(ClassifierGpu, LossAndGradientsMatchCpu) {
  struct Case {
    std::int64_t N, C, V, Vp;
  };
  for (DType type : kFloatTypes)
    for (const auto& [N, C, V, Vp] :
         {Case{1, 8, 3, 8}, Case{17, 33, 257, 320}, Case{129, 64, 1000, 1000}, Case{128, 64, 1001, 1003},
          Case{600, 16, 50257, 50304}, Case{1000, 128, 257, 320}, Case{11000, 8, 50257, 50304}}) {
      use(type);
      SCOPED_TRACE(fmt::format("{} N={} C={} V={} Vp={}", name_of(type), N, C, V, Vp));
      std::vector<std::int32_t> ids = integer_values(5, N, static_cast<std::int32_t>(V));
      for (std::size_t i = 3; i < ids.size(); i += 7) ids[i] = -1;
      const float scale = 1.0f / static_cast<float>(N);
      const Twin x = random({N, C}), w = random({Vp, C}, 0.2f), targets = integers({N}, ids),
                 losses = output({N}, DType::f32);
      const Twin d_x = output({N, C}), d_w = random({Vp, C}, 1e-3f, DType::f32), alone = output({N}, DType::f32);
      const auto run = [&](Context& ctx, Arena& scratch, Owned Twin::*s) {
        classifier_loss(ctx,
                        {(x.*s).t, (w.*s).t, (targets.*s).t, V, scale, (losses.*s).t, (d_x.*s).t, (d_w.*s).t, scratch});
        classifier_loss(ctx, {(x.*s).t, (w.*s).t, (targets.*s).t, V, scale, (alone.*s).t, Tensor{}, Tensor{}, scratch});
      };
      for (int turn = 0; turn < 2; ++turn) {
        on_cpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::cpu); });
        on_gpu([&](Context& ctx, Arena& scratch) { run(ctx, scratch, &Twin::gpu); });
      }
      // A logit that rounds to the other bf16 neighbour moves its row's loss.
      const double loss_tolerance = type == DType::f32 ? 4 * f32_tolerance(C) : bf16_tolerance();
      EXPECT_LE(error(losses), loss_tolerance);
      EXPECT_LE(error(alone), loss_tolerance);
      EXPECT_LE(error(d_x), type == DType::f32 ? 8 * f32_tolerance(C + V) : bf16_tolerance(3));
      EXPECT_LE(error(d_w), type == DType::f32 ? 8 * f32_tolerance(C + N) : bf16_tolerance(3));
    }
}

TEST_F(ClassifierGpu, AWeightOfTheLossIsAFactorOfItsScale) {
  for (DType type : kFloatTypes)
    for (const auto& [N, C, V, Vp] : {std::array<std::int64_t, 4>{17, 33, 257, 320}, {128, 64, 1001, 1003}}) {
      use(type);
      std::vector<std::int32_t> ids = integer_values(5, N, static_cast<std::int32_t>(V));
      for (std::size_t i = 1; i < ids.size(); i += 2) ids[i] = -1;
      const Twin x = random({N, C}), w = random({Vp, C}, 0.2f), targets = integers({N}, ids),
                 weight = filled({1}, {4.0f}, DType::f32), losses = output({N}, DType::f32), d_x = output({N, C}),
                 d_w = filled({Vp, C}, std::vector<float>(static_cast<std::size_t>(Vp * C)), DType::f32),
                 whole = output({N, C}),
                 d_whole = filled({Vp, C}, std::vector<float>(static_cast<std::size_t>(Vp * C)), DType::f32);
      on_gpu([&](Context& ctx, Arena& scratch) {
        classifier_loss(ctx, {x.gpu.t, w.gpu.t, targets.gpu.t, V, 0.25f, losses.gpu.t, d_x.gpu.t, d_w.gpu.t, scratch,
                              Tensor{}, weight.gpu.t});
        classifier_loss(ctx,
                        {x.gpu.t, w.gpu.t, targets.gpu.t, V, 1.0f, losses.gpu.t, whole.gpu.t, d_whole.gpu.t, scratch});
      });
      EXPECT_TRUE(gpu_bytes(d_x) == gpu_bytes(whole));
      EXPECT_TRUE(gpu_bytes(d_w) == gpu_bytes(d_whole));
    }
}

}  // namespace
}  // namespace sfa::test
