// dist.context_parallel over MPI: ranks that share sequences train what one rank trains.
#include <cmath>

#include "checkpoint/checkpoint.h"
#include "dist/ranks_test.h"

namespace sfa::test {
namespace {

struct ModelCase {
  std::string name, arch, attention;
  std::vector<std::string> more;
};

class ContextParallel : public RanksTest {
 protected:
  // Two layers of heads of 16 features over 16 tokens, two micro-steps of two sequences.
  std::vector<std::string> arguments(const ModelCase& c, const std::string& run, std::vector<std::string> more = {}) {
    const std::string file = at(c.name + ".yaml");
    if (!fs::exists(file))
      write_text(file, "output_dir: " + at("run") + "\ndevice: cpu\nseed: 3\nmodel:\n  arch: " + c.arch +
                           "\n  num_hidden_layers: 2\n  num_attention_heads: 2\n  hidden_size: 32\n"
                           "  max_position_embeddings: 16\n  attention: " +
                           c.attention + "\ndata: {train: " + at("data.h5") +
                           ", batch_size: 4, micro_batch_size: 2}\n"
                           "train: {max_steps: 20, lr: 0.003, warmup_steps: 5, eval_every: 20, log_every: 1}\n"
                           "checkpoint: {every: 0, background: false}\n");
    std::vector<std::string> all{"train", file, "output_dir=" + at(run)};
    all.insert(all.end(), c.more.begin(), c.more.end());
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  void train(int ranks, const ModelCase& c, const std::string& run, const std::vector<std::string>& more = {}) {
    const Ended ended = ranks == 1 ? sfa(arguments(c, run, more)) : on_ranks(ranks, arguments(c, run, more));
    ASSERT_EQ(ended.code, 0) << run << ": " << ended.err;
  }
  void expect_same_losses(const std::string& run, const std::string& as) {
    const std::vector<double> losses = column(as, "train/loss");
    EXPECT_GE(losses.size(), 20u);
    EXPECT_LT(largest_difference(column(run, "train/loss"), losses), 1e-5) << run;
    EXPECT_LT(largest_difference(column(run, "val/loss"), column(as, "val/loss")), 1e-5) << run;
  }

  // What AdamW's first moment holds behind one step without clipping: a tenth of the gradient.
  std::map<std::string, std::vector<float>> first_moments(const std::string& run) {
    std::map<std::string, std::vector<float>> all;
    for (const auto& [name, bytes] : tensors(at(run))) {
      if (!name.starts_with("adam_m/")) continue;
      all[name].resize(bytes.size() / sizeof(float));
      std::memcpy(all[name].data(), bytes.data(), bytes.size());
    }
    return all;
  }
  void expect_same_gradients(const std::string& run, const std::string& as) {
    const auto got = first_moments(run), want = first_moments(as);
    ASSERT_FALSE(want.empty());
    ASSERT_EQ(got.size(), want.size());
    for (const auto& [name, w] : want) {
      const std::vector<float>& g = got.at(name);
      ASSERT_EQ(g.size(), w.size());
      double apart = 0, size = 0;
      for (std::size_t i = 0; i < w.size(); ++i) {
        apart += std::pow(static_cast<double>(g[i]) - static_cast<double>(w[i]), 2);
        size += std::pow(static_cast<double>(w[i]), 2);
      }
      EXPECT_GT(size, 0) << name;
      EXPECT_LE(std::sqrt(apart), 1e-4 * std::sqrt(size)) << run << " " << name;
    }
  }
};

const ModelCase kModels[] = {
    {"gpt2_dense", "gpt2", "{type: dense}", {}},
    {"gpt2_sfa", "gpt2", "{type: sfa, k: 8}", {"data.document_mask=true"}},
    {"qwen3_dense", "qwen3", "{type: dense, window: 6}", {"model.num_key_value_heads=1"}},
    {"qwen3_sfa", "qwen3", "{type: sfa, k: 8}", {"model.num_key_value_heads=1"}},
};

class ContextParallelModel : public ContextParallel, public ::testing::WithParamInterface<ModelCase> {};

TEST_P(ContextParallelModel, LossesAndGradientsAreThoseOfOneRank) {
  const std::vector<std::string> one_step{"train.max_steps=1", "train.grad_clip=0", "train.warmup_steps=0"};
  const ModelCase& c = GetParam();
  const std::string one = c.name + "_one", step = c.name + "_step";
  train(1, c, one);
  train(1, c, step, one_step);
  for (const int ranks : {2, 4}) {
    const std::string cp = "dist.context_parallel=" + std::to_string(ranks);
    const std::string name = one + std::to_string(ranks), step_name = step + std::to_string(ranks);
    train(ranks, c, name, {cp});
    expect_same_losses(name, one);
    std::vector<std::string> more = one_step;
    more.push_back(cp);
    train(ranks, c, step_name, more);
    expect_same_gradients(step_name, step);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ContextParallelModel, ::testing::ValuesIn(kModels),
                         [](const auto& model) { return model.param.name; });

// Two groups of two ranks, which share out the batch; ZeRO stages over all four; two runs, the same bits.
TEST_F(ContextParallel, BesideDataParallelRanks) {
  const ModelCase& c = kModels[1];
  train(1, c, "one");
  std::map<std::string, std::vector<std::uint8_t>> weights;
  for (const char* zero : {"0", "2", "2"}) {
    const std::string name = std::string("zero") + zero;
    const auto before = fs::exists(at(name)) ? tensors(at(name)) : decltype(weights){};
    fs::remove_all(at(name));
    train(4, c, name, {"dist.context_parallel=2", std::string("dist.zero=") + zero});
    expect_same_losses(name, "one");
    if (before.empty()) continue;
    EXPECT_EQ(tensors(at(name)), before);
  }
}

// A checkpoint knows nothing of the layout: half of the run on four ranks, the rest on one.
TEST_F(ContextParallel, ResumesOnAnyLayout) {
  const ModelCase& c = kModels[3];
  const std::vector<std::string> both{"train.schedule=constant", "train.eval_every=10"};
  train(1, c, "one", both);
  train(4, c, "two", {both[0], both[1], "train.max_steps=10", "dist.context_parallel=4", "train.recompute=block"});
  train(1, c, "two", {both[0], both[1], "--resume"});
  expect_same_losses("two", "one");
}

TEST_F(ContextParallel, WhatCantBeSharedIsRefusedInASentence) {
  const ModelCase& c = kModels[1];
  const auto refused = [&](int ranks, const std::vector<std::string>& more, const std::string& part) {
    const Ended ended = ranks == 1 ? sfa(arguments(c, "no", more)) : on_ranks(ranks, arguments(c, "no", more));
    EXPECT_EQ(ended.code, 1);
    EXPECT_NE(ended.err.find(part), std::string::npos) << ended.err;
  };
  refused(1, {"dist.context_parallel=2"}, "1 rank can't be shared out into groups of 2");
  refused(3, {"dist.context_parallel=2"}, "3 ranks can't be shared out into groups of 2");
  refused(1, {"dist.context_parallel=3"}, "data.seq_len = 16 tokens can't be cut into 6 equal chunks");
  refused(1, {"dist.context_parallel=2", "train.distill.lambda=1"}, "dense teacher");
  refused(1, {"dist.context_parallel=2", "train.noise_scale=true"}, "train.noise_scale");
  EXPECT_FALSE(fs::exists(at("no")));
}

}  // namespace
}  // namespace sfa::test
