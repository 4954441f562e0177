// Qwen3 beside transformers' Qwen3ForCausalLM (tests/golden/make_golden_qwen3.py): losses and gradients of training,
// and the logits of every token, decoded over KV caches one by one and in chunks.
#include "models/golden_run.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

constexpr GoldenBars kBars{.loss = 1e-5, .gradient = 1e-3};
constexpr double kLogitsBar = 1e-4;

ModelConfig base(std::int64_t G, std::int64_t D) {
  ModelConfig c;
  c.arch = "qwen3";
  c.hidden_size = 32;
  c.num_attention_heads = 4;
  c.num_key_value_heads = G;
  c.head_dim = D;
  c.intermediate_size = 40;
  c.num_hidden_layers = 2;
  c.vocab_size = 131;
  c.max_position_embeddings = 24;
  return c;
}

std::vector<GoldenCase> cases() {
  ModelConfig untied = base(2, 12), shared = with_sfa(base(2, 12), 4, 4), per_head = with_sfa(base(2, 12), 3, 5);
  untied.tie_word_embeddings = false;
  untied.rope_theta = 1e4;
  untied.rms_norm_eps = 1e-5;
  shared.tie_word_embeddings = false;
  shared.rope_projection = "shared";
  per_head.rope_projection = "per_head";
  return {{"qwen3_mha.bin", base(4, 8)},    {"qwen3_gqa2_untied.bin", untied},
          {"qwen3_gqa4.bin", base(1, 16)},  {"qwen3_sfa.bin", with_sfa(base(2, 16), 4, 5)},
          {"qwen3_sfa_shared.bin", shared}, {"qwen3_sfa_per_head.bin", per_head}};
}

class Qwen3Golden : public DeviceTest {
 protected:
  void check(std::size_t number, std::int64_t parts) {
    expect_golden_everywhere(ctx, cases()[number], parts, kBars);
    if (parts == 1) check_logits(cases()[number]);
  }

  // The first batch, fed in pieces of so many tokens: behind each piece, the logits of its last token.
  void check_logits(const GoldenCase& which) {
    const GoldenFile golden = read_golden(which.file);
    if (!golden.contains("logits")) return;
    const GoldenTensor& want = golden.at("logits");
    const std::int64_t B = want.shape[0], T = want.shape[1], V = want.shape[2];
    ModelConfig config = which.config;
    config.resolve();
    const auto model = make_model(config, ctx.device(), DType::f32);
    model->bind(pool.floats(golden_weights(model->parameters()), {model->parameters().flat_size()}), Tensor{});
    const auto& tokens = golden.at("tokens").integers;
    double worst = 0, size = 0;
    for (const std::int64_t piece : {std::int64_t{1}, std::int64_t{7}, T}) {
      const auto generation = model->start_generation(ctx, B, T, piece);
      for (std::int64_t at = 0; at < T; at += piece) {
        const std::int64_t n = std::min(piece, T - at);
        std::vector<std::int32_t> fed;
        for (std::int64_t b = 0; b < B; ++b)
          fed.insert(fed.end(), tokens.begin() + b * T + at, tokens.begin() + b * T + at + n);
        const auto got = values_of(ctx, model->feed(ctx, *generation, pool.integers(fed, {B, n})));
        for (std::int64_t b = 0; b < B; ++b)
          for (std::int64_t v = 0; v < V; ++v) {
            const float here = got[static_cast<std::size_t>(b * config.padded_vocab_size() + v)],
                        there = want.floats[static_cast<std::size_t>((b * T + at + n - 1) * V + v)];
            ASSERT_NEAR(here, there, kLogitsBar) << "token " << at + n - 1 << ", fed " << piece << " at a time";
            worst = std::max(worst, std::fabs(static_cast<double>(here - there)));
            size = std::max(size, std::fabs(static_cast<double>(there)));
          }
      }
    }
    std::printf("  %s, %s: logits of up to %.1f within %.1e\n", which.file, name_of(ctx.device()), size, worst);
  }
};

TEST_P(Qwen3Golden, OneKeyHeadAQueryHead) {
  check(0, 1);
}
TEST_P(Qwen3Golden, TwoQueryHeadsAKeyHeadUntied) {
  check(1, 1);
}
TEST_P(Qwen3Golden, FourQueryHeadsAKeyHeadIgnoredTargets) {
  check(2, 1);
}
TEST_P(Qwen3Golden, SfaSelectsBehindTheRotation) {
  check(3, 1);
}
TEST_P(Qwen3Golden, RopeProjectionShared) {
  check(4, 1);
}
TEST_P(Qwen3Golden, RopeProjectionPerHeadDocuments) {
  check(5, 1);
}
TEST_P(Qwen3Golden, AccumulationOverMicroBatches) {
  check(1, 2);
  check(4, 2);
}

SFA_ON_EVERY_DEVICE(Qwen3Golden);

}  // namespace
}  // namespace sfa::test
