// What we export, as transformers sees it: the same logits, the same text with and without its cache, the same ids of
// its tokenizer. Runs where a Python with torch and transformers is (SFA_PYTHON names one).
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "app/program.h"
#include "golden/golden_file.h"
#include "hf/logits.h"
#include "tokenizer/tokenizer.h"

namespace sfa::test {
namespace {

// The search path of our libraries is not Python's.
std::string python() {
  const char* named = std::getenv("SFA_PYTHON");
  return std::string("env -u LD_LIBRARY_PATH ") + (named ? named : "python3");
}

class Transformers : public AppTest {
 protected:
  void SetUp() override {
    static const bool there =
        std::system((python() + " -c 'import torch, safetensors, transformers.masking_utils' 2>/dev/null").c_str()) ==
        0;
    if (!there) GTEST_SKIP() << "no Python with torch and transformers; SFA_PYTHON names one";
    AppTest::SetUp();
  }

  // Trains a little, with weights that have moved from where they began, and exports.
  void model(const std::string& name, std::vector<std::string> overrides) {
    std::vector<std::string> arguments{"train",
                                       at("run.yaml"),
                                       "output_dir=" + at(name),
                                       "train.max_steps=6",
                                       "train.eval_every=0",
                                       "model.initializer_range=0.2"};
    arguments.insert(arguments.end(), overrides.begin(), overrides.end());
    const Ended trained = sfa(arguments);
    ASSERT_EQ(trained.code, 0) << trained.err;
    const Ended converted = sfa({"convert", at(name), at(name + "_hf"), "--to", "hf"});
    ASSERT_EQ(converted.code, 0) << converted.err;
    add_job(name + "_hf");
  }

  void add_job(const std::string& name) {
    const std::vector<std::int32_t> tokens{84, 104, 101, 32, 113, 117, 101, 114, 121, 0, 255, 256};
    nlohmann::json job = {{"folder", at(name)}, {"tokens", tokens}};
    for (const std::string& device : devices()) {
      LoadedModel loaded = load(at(name), device);
      job["logits"].push_back(logits_of(loaded, tokens));
      const auto made = greedy(loaded, tokens, 4);
      if (device == "cpu")
        job["greedy"] = made;
      else
        EXPECT_EQ(made, job["greedy"].get<std::vector<std::int32_t>>()) << name << " on " << device;
    }
    const std::string text = "It's a  test:\n\n\te\xcc\x81 \xf0\x9f\x98\x80 12345";
    std::vector<std::uint32_t> ids;
    load_tokenizer(at(name))->encode(text, ids);
    job["text"] = text;
    job["ids"] = ids;
    jobs_.push_back(job);
    names_.push_back(name);
  }

  void run_jobs() {
    write_text(scratch() / "jobs.json", jobs_.dump());
    const fs::path results = scratch() / "results.json", log = scratch() / "python_log";
    const std::string command = "OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HOME=" + (scratch() / "hf_home").string() + " " +
                                python() + " " + source_dir() + "/tests/hf/transformers_check.py " +
                                (scratch() / "jobs.json").string() + " " + results.string() + " >" + log.string() +
                                " 2>&1";
    ASSERT_EQ(std::system(command.c_str()), 0) << read_text(log);
    const nlohmann::json all = nlohmann::json::parse(read_text(results));
    ASSERT_EQ(all.size(), jobs_.size());
    for (std::size_t i = 0; i < jobs_.size(); ++i) {
      const nlohmann::json& said = all[i];
      EXPECT_LT(said["difference"].get<double>(), 1e-4) << names_[i];
      EXPECT_LT(said["difference_padded"].get<double>(), 1e-4) << names_[i];
      EXPECT_EQ(said["greedy"], jobs_[i]["greedy"]) << names_[i];
      EXPECT_EQ(said["greedy_without_cache"], jobs_[i]["greedy"]) << names_[i];
      EXPECT_EQ(said["ids"], jobs_[i]["ids"]) << names_[i];
      EXPECT_EQ(said["text"], jobs_[i]["text"]) << names_[i];
      EXPECT_TRUE(said["same_tensors"].get<bool>()) << names_[i];
      const bool own = said["class"].get<std::string>().starts_with("Sfa");
      EXPECT_EQ(own, fs::exists(at(names_[i]) + "/modeling_sfa.py")) << said["class"];
    }
  }

 private:
  nlohmann::json jobs_ = nlohmann::json::array();
  std::vector<std::string> names_;
};

TEST_F(Transformers, Gpt2ExportsComputeTheSame) {
  const std::string a = "model.attention.";
  model("dense", {a + "type=dense", a + "k=0"});
  model("sfa", {a + "k=3"});
  model("mask", {a + "k=2", a + "zero_overlap=mask", a + "impl=reference"});
  model("pairs", {a + "k=4", a + "selection=topk_pairs"});
  model("layers", {a + "k=3", a + "k_by_layer=[2, 6]", a + "score_scale=0.7"});
  model("scaled", {a + "type=dense", a + "k=0", a + "score_scale=0.7"});
  model("gated", {a + "k=3", a + "gate=feature", "train.lr=0.1"});
  model("window", {a + "k_q=3", a + "k_k=5", a + "selection=topk_2of4", a + "window=5"});
  run_jobs();
}

TEST_F(Transformers, Qwen3ExportsComputeTheSame) {
  const std::string a = "model.attention.";
  const std::vector<std::string> qwen3{
      "model.arch=qwen3",  "model.num_attention_heads=4", "model.num_key_value_heads=2",
      "model.head_dim=12", "model.rope_theta=5000",       "model.rms_norm_eps=1e-5"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), qwen3.begin(), qwen3.end());
    return more;
  };
  model("dense", with({a + "type=dense", a + "k=0"}));
  model("untied", with({a + "type=dense", a + "k=0", "model.tie_word_embeddings=false"}));
  model("sfa", with({a + "k=3"}));
  model("layers", with({a + "k=3", a + "k_by_layer=[7, 2]", a + "score_scale=0.7"}));
  model("gated", with({a + "k=3", a + "gate=feature", "train.lr=0.1"}));
  model("shared", with({a + "k=4", a + "rope_projection=shared", "train.lr=0.1"}));
  model("per_head", with({a + "type=dense", a + "k=0", a + "rope_projection=per_head", "train.lr=0.1"}));
  run_jobs();
}

}  // namespace
}  // namespace sfa::test
