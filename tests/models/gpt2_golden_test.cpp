// Ten steps of training beside PyTorch: the same weights and batches must give the same losses, gradient norms and, at
// the first step, the same gradient of every parameter. Dense and SFA (k = 8) come from transformers' GPT2LMHeadModel.
#include "models/golden_run.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

ModelConfig base(std::int64_t C, std::int64_t H, std::int64_t F, std::int64_t L, std::int64_t V, std::int64_t P) {
  ModelConfig c;
  c.hidden_size = C;
  c.num_attention_heads = H;
  c.intermediate_size = F;
  c.num_hidden_layers = L;
  c.vocab_size = V;
  c.max_position_embeddings = P;
  return c;
}

std::vector<GoldenCase> cases() {
  const ModelConfig gpt2 = base(64, 2, 128, 2, 257, 32);
  ModelConfig wide = base(32, 4, 64, 3, 131, 24), grouped = with_sfa(wide, 4, 6),
              masked = with_sfa(base(32, 2, 64, 3, 131, 24), 3, 4);
  wide.qk_head_dim = 12;
  wide.attention.window = 7;
  grouped.num_key_value_heads = 2;
  grouped.qk_head_dim = 16;
  grouped.attention.selection = "topk_2of4";
  masked.attention.zero_overlap = "mask";
  return {{"gpt2_dense.bin", gpt2},
          {"gpt2_sfa_k8.bin", with_sfa(gpt2, 8, 8)},
          {"gpt2_wide_qk.bin", wide},
          {"gpt2_gqa_sfa.bin", grouped},
          {"gpt2_sfa_mask.bin", masked}};
}

class Gpt2Golden : public DeviceTest {
 protected:
  void check(std::size_t number, std::int64_t parts) {
    expect_golden_everywhere(ctx, cases()[number], parts, GoldenBars{});
  }
};

TEST_P(Gpt2Golden, Dense) {
  check(0, 1);
}
TEST_P(Gpt2Golden, SfaK8) {
  check(1, 1);
}
TEST_P(Gpt2Golden, WideQueriesWindowIgnoredTargets) {
  check(2, 1);
}
TEST_P(Gpt2Golden, GroupedHeadsTwoOfFourDocuments) {
  check(3, 1);
}
TEST_P(Gpt2Golden, PairsWithoutCommonFeatureMasked) {
  check(4, 1);
}
TEST_P(Gpt2Golden, AccumulationOverMicroBatches) {
  check(1, 4);
  check(2, 2);
}

SFA_ON_EVERY_DEVICE(Gpt2Golden);

}  // namespace
}  // namespace sfa::test
