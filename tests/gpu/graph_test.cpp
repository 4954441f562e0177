// A micro-step as a CUDA graph: the same bits as without, over steps, micro-steps, document masks and validation
// between steps.
#include <gtest/gtest.h>

#include "support/tensors.h"
#include "train/trainer.h"

namespace sfa::test {
namespace {

struct Outcome {
  std::vector<double> losses;
  std::vector<float> weights;
};

Batch batch_of(int B, int T, int salt) {
  Batch b;
  b.B = B;
  b.T = T;
  for (int i = 0; i < B * T; ++i) {
    b.tokens.push_back((i * i * 7 + 3 * i + salt + i / 5) % 90);
    b.targets.push_back((i * 5 + salt * 3 + i / 4) % 90);
    b.first_key.push_back(i % T < T / 3 ? 0 : T / 3);
  }
  b.num_targets = B * T;
  b.step_targets = 400 + salt;  // a weight of its own a step; only train.loss_mask looks
  return b;
}

Outcome train_with(const std::string& graphs, const std::vector<std::string>& more) {
  std::vector<std::string> keys{"output_dir=unused",          "device=cuda",
                                "model.num_hidden_layers=2",  "model.num_attention_heads=2",
                                "model.hidden_size=128",      "model.max_position_embeddings=64",
                                "model.vocab_size=90",        "data.batch_size=8",
                                "data.micro_batch_size=4",    "train.lr=0.01",
                                "train.cuda_graphs=" + graphs};
  keys.insert(keys.end(), more.begin(), more.end());
  TrainingState state(parse_config("", "", keys), Device::cuda);
  state.initialize(7);
  Context& ctx = state.context();
  Outcome out;
  for (int step = 0; step < 5; ++step) {
    state.begin_step(ctx, step);
    for (int m = 0; m < 2; ++m) state.micro_step(ctx, batch_of(4, 64, 2 * step + m), 1.0f / 512);
    state.update(ctx, step);
    double total = 0;
    ctx.copy(&total, Device::cpu, state.loss_total().data, Device::cuda, sizeof(double));
    ctx.synchronize();
    out.losses.push_back(total / 512);
    if (step == 2) state.model().evaluate(ctx, state.arenas(), state.upload(ctx, batch_of(4, 64, 99)), state.losses());
  }
  out.weights = values_of(ctx, state.buffers().master);
  return out;
}

TEST(CudaGraphs, GiveTheSameBits) {
  std::string why;
  if (!cuda_available(&why)) GTEST_SKIP() << "no GPU can be used: " << why;
  for (const std::vector<std::string>& more : std::vector<std::vector<std::string>>{
           {},
           {"train.dtype=fp32", "data.document_mask=true"},
           {"model.attention={type: sfa, k: 8}", "train.distill.lambda=1", "train.distill.every=2"},
           {"model.attention.type=sfa", "model.attention.k=8", "data.document_mask=true"},
           {"model.attention.type=sfa", "model.attention.k=8", "model.attention.selection=topk_2of4"},
           {"model.attention={type: sfa, k: 6}", "train.max_steps=8", "train.k_anneal={from: 16, until: 0.5}"},
           {"model.attention={type: sfa, k: 6, selection: topk_2of4}", "train.max_steps=8",
            "train.k_anneal={from: 16, until: 0.5}", "train.distill.lambda=1", "train.distill.every=2"},
           {"model.attention={type: sfa, k: 8, balance: 0.01, gate: feature}", "data.document_mask=true"},
           {"model.attention={type: sfa, k: 8, selection: topk_2of4, balance: 0.01}", "train.recompute=block"},
           {"model.arch=qwen3", "model.attention={type: sfa, k: 6, balance: 0.01, gate: feature}", "train.max_steps=8",
            "train.k_anneal={from: 16, until: 0.5}", "train.lr=0.003"},
           {"model.attention={type: sfa, k: 8, k_by_layer: [12, 4], score_scale: 0.2}", "train.recompute=block"},
           {"train.loss_mask=answers", "model.attention={type: sfa, k: 8, balance: 0.01}"},
           {"train.recompute=block"},
           {"model.arch=qwen3", "model.num_key_value_heads=1", "data.document_mask=true"},
           {"model.arch=qwen3", "model.head_dim=128", "model.attention.type=sfa", "model.attention.k=16",
            "model.attention.rope_projection=per_head", "train.recompute=ops", "train.lr=0.003"},
           {"train.recompute=ops", "model.attention.impl=reference"}}) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(more, " ")));
    const Outcome plain = train_with("false", more), graph = train_with("true", more);
    EXPECT_EQ(plain.losses, graph.losses);
    EXPECT_EQ(plain.weights, graph.weights);
    EXPECT_LT(plain.losses.back(), plain.losses.front());
  }
}

}  // namespace
}  // namespace sfa::test
