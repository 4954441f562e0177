// A run on a GPU with faults in its gradients: the host hears of them without waiting, and the end does not depend on
// when it did.
#include <fstream>

#include "checkpoint/checkpoint.h"
#include "data/tokenize.h"
#include "gpu/twins.h"
#include "train/trainer.h"

namespace sfa::test {
namespace {
namespace fs = std::filesystem;

class GuardRunGpu : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    folder_ = fs::temp_directory_path() / fmt::format("sfa_guard_gpu_{}", ::getpid());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::ofstream text(folder_ / "text.txt");
    for (int i = 0; i < 3000; ++i) text << i << " and " << i * i << " make " << i + i * i << ".\n";
    text.close();
    TokenizeOptions options;
    options.source.inputs = {(folder_ / "text.txt").string()};
    options.output.path = (folder_ / "data.h5").string();
    tokenize(options, *load_tokenizer("bytes"));
  }
  void TearDown() override { fs::remove_all(folder_); }

  // NaN into the gradient of the step that holds this sample; returns the last checkpoint's state and its bytes.
  std::pair<nlohmann::json, std::vector<float>> run(const std::string& name, std::vector<std::string> overrides) {
    const std::string yaml =
        "device: cuda\nseed: 3\nmodel: {num_hidden_layers: 2, num_attention_heads: 2, hidden_size: "
        "64, max_position_embeddings: 64, attention: {type: sfa, k: 4}}\n"
        "data: {batch_size: 4, micro_batch_size: 2}\ncheckpoint: {every: 10}\n"
        "train: {max_steps: 40, lr: 1.0e-2, eval_every: 0, log_every: 40}\n";
    overrides.push_back("output_dir=" + (folder_ / name).string());
    overrides.push_back("data.train=" + (folder_ / "data.h5").string());
    const TrainHooks hooks{[](TrainingState& state, std::int64_t, std::int64_t first_sample) {
      if (first_sample != 4 * 24) return;
      const float nan = std::numeric_limits<float>::quiet_NaN();
      const Tensor& g = state.buffers().gradients;
      const std::int64_t place = state.model().parameters().find("h.1.mlp.up.weight")->offset + 5;
      state.context().copy(static_cast<float*>(g.data) + place, g.device, &nan, Device::cpu, sizeof nan);
      state.context().synchronize();
    }};
    EXPECT_EQ(sfa::train(parse_config(yaml, "test.yaml", overrides), {}, hooks), 0);
    CheckpointReader reader(find_checkpoint(folder_ / name));
    std::vector<float> all;
    for (const auto& [tensor_name, tensor] : reader.tensors()) {
      const std::size_t at = all.size();
      all.resize(at + static_cast<std::size_t>(tensor.numel()));
      reader.read(tensor_name, 0, tensor.numel(), all.data() + at);
    }
    for (float x : all) EXPECT_TRUE(std::isfinite(x));
    return {reader.state(), all};
  }
  fs::path folder_;
};

TEST_F(GuardRunGpu, SkipAndRollbackEndTheSameHoweverOftenTheHostLooks) {
  for (const char* action : {"skip", "rollback"})
    for (const char* weights : {"fp32", "none"}) {
      const std::vector<std::string> common{std::string("train.guard.nonfinite=") + action,
                                            std::string("train.master_weights=") + weights,
                                            "train.stochastic_rounding=true",
                                            "train.ema_decay=0.9",
                                            "train.guard.spike=skip",
                                            "train.guard.window=16",
                                            "train.guard.loss_threshold=50",
                                            "train.guard.grad_norm_threshold=50",
                                            "train.noise_scale=true"};
      std::vector<std::string> always = common;
      always.emplace_back("train.log_every=1");
      const std::string name = std::string(action) + weights;
      const auto seldom_looked = run(name + "_seldom", common), always_looked = run(name + "_always", always);
      EXPECT_EQ(seldom_looked.first, always_looked.first) << name;
      EXPECT_TRUE(seldom_looked.second == always_looked.second) << name;
      const bool skip = std::string(action) == "skip";
      EXPECT_EQ(seldom_looked.first.at("guard").at("skipped"), skip ? 1 : 0);
      EXPECT_EQ(seldom_looked.first.at("rollbacks"), skip ? 0 : 1);
      EXPECT_EQ(seldom_looked.first.at("next_sample"), skip ? 160 : 180) << "back from step 25 to 20, on at sample 100";
    }
}

}  // namespace
}  // namespace sfa::test
