// sfa convert, and what starts from its results: the same weights bit for bit, the same perplexity, the same text.
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "app/program.h"
#include "golden/golden_file.h"
#include "hf/logits.h"
#include "hf/model_source.h"

namespace sfa::test {
namespace {

class Convert : public AppTest {
 protected:
  // A short run with the overrides; its folder is at("run").
  void train(std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments{"train", at("run.yaml"), "train.max_steps=4", "train.eval_every=0"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Ended ended = sfa(arguments);
    ASSERT_EQ(ended.code, 0) << ended.err;
  }
  void convert(const std::string& in, const std::string& out, const std::string& to,
               std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments{"convert", in, out, "--to", to};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Ended ended = sfa(arguments);
    ASSERT_EQ(ended.code, 0) << ended.err;
  }
  // The tensors "param/..." of a checkpoint.
  static std::map<std::string, std::vector<std::uint8_t>> weights(const std::string& run) {
    auto all = tensors(run);
    std::erase_if(all, [](const auto& entry) { return !entry.first.starts_with("param/"); });
    return all;
  }
  [[nodiscard]] nlohmann::json perplexity(const std::string& checkpoint) const {
    const Ended ended = sfa({"eval", "perplexity", "--checkpoint", checkpoint, "--data", at("data.h5"), "--json",
                             "--seq-len", "16", "--device", "cpu"});
    EXPECT_EQ(ended.code, 0) << ended.err;
    return nlohmann::json::parse(ended.out, nullptr, false);
  }
  [[nodiscard]] std::string generated(const std::string& checkpoint) const {
    const Ended ended = sfa({"generate", "--checkpoint", checkpoint, "--prompt", "the query ", "--max-tokens", "20",
                             "--temperature", "0", "--device", "cpu"});
    EXPECT_EQ(ended.code, 0) << ended.err;
    return ended.out;
  }
};

const std::vector<std::string> kDense{"model.attention.type=dense", "model.attention.k=0"};

// The rows that pad the vocabulary are not part of a Hugging Face checkpoint and come back as zeros.
std::map<std::string, std::vector<std::uint8_t>> without_padding(std::map<std::string, std::vector<std::uint8_t>> all) {
  all["param/wte.weight"].resize(257 * 16 * 4);
  return all;
}

TEST_F(Convert, ThereAndBackIsTheSameBits) {
  for (const bool sparse : {false, true}) {
    fs::remove_all(at("run"));
    fs::remove_all(at("hf"));
    fs::remove_all(at("back"));
    fs::remove_all(at("again"));
    train(sparse ? std::vector<std::string>{"model.attention.window=9"} : kDense);
    convert(at("run"), at("hf"), "hf");
    EXPECT_EQ(fs::exists(at("hf/modeling_sfa.py")), sparse);
    convert(at("hf"), at("back"), "sfa");
    EXPECT_EQ(without_padding(weights(at("run"))), without_padding(weights(at("back"))));
    convert(at("back"), at("again"), "hf");
    EXPECT_EQ(read_text(at("hf/model.safetensors")), read_text(at("again/model.safetensors")));
    EXPECT_EQ(read_text(at("hf/config.json")), read_text(at("again/config.json")));
    const auto first = perplexity(at("run"));
    EXPECT_GT(first["tokens"], 400);
    for (const char* other : {"hf", "back", "again"}) {
      EXPECT_EQ(perplexity(at(other))["loss"], first["loss"]) << other;
      EXPECT_EQ(generated(at(other)), generated(at("run"))) << other;
    }
  }
}

const std::vector<std::string> kQwen3{"model.arch=qwen3", "model.num_attention_heads=4", "model.num_key_value_heads=2",
                                      "model.head_dim=6"};

std::vector<std::string> qwen3(std::vector<std::string> more) {
  more.insert(more.begin(), kQwen3.begin(), kQwen3.end());
  return more;
}

TEST_F(Convert, Qwen3ThereAndBackIsTheSameBits) {
  const auto without_rows = [](std::map<std::string, std::vector<std::uint8_t>> all) {
    for (const char* name : {"param/wte.weight", "param/head.weight"})
      if (all.contains(name)) all[name].resize(257 * 16 * 4);
    return all;
  };
  for (const std::string kind : {"none", "per_head"}) {
    const std::string run = at("run_" + kind), hf = at("hf_" + kind), back = at("back_" + kind);
    train(qwen3({"output_dir=" + run, "model.tie_word_embeddings=false", "model.attention.rope_projection=" + kind}));
    convert(run, hf, "hf");
    convert(hf, back, "sfa");
    EXPECT_EQ(without_rows(weights(run)), without_rows(weights(back))) << kind;
    EXPECT_EQ(perplexity(hf)["loss"], perplexity(run)["loss"]) << kind;
    EXPECT_EQ(generated(hf), generated(run)) << kind;
  }
}

TEST_F(Convert, GatesGoThereAndBack) {
  train({"output_dir=" + at("gpt2"), "model.attention.gate=feature", "train.lr=0.05"});
  train(qwen3({"output_dir=" + at("qwen3"), "model.attention.gate=feature", "train.lr=0.05"}));
  for (const std::string run : {"gpt2", "qwen3"}) {
    convert(at(run), at(run + "_hf"), "hf");
    convert(at(run + "_hf"), at(run + "_back"), "sfa");
    auto before = weights(at(run)), after = weights(at(run + "_back"));
    const char* gate = "param/h.1.attn.qk_gate.weight";
    EXPECT_EQ(before[gate], after[gate]) << run;
    std::vector<float> values(before[gate].size() / sizeof(float));
    ASSERT_FALSE(values.empty()) << run;
    std::memcpy(values.data(), before[gate].data(), before[gate].size());
    EXPECT_TRUE(std::any_of(values.begin(), values.end(), [](float g) { return g != 1.0f; })) << run << " learns them";
    EXPECT_EQ(perplexity(at(run + "_hf"))["loss"], perplexity(at(run))["loss"]) << run;
    EXPECT_EQ(hf::SafetensorsSet(at(run + "_hf"))
                      .find(run == "gpt2" ? "transformer.h.1.attn.k_gate.weight"
                                          : "model.layers.1.self_attn.k_gate.weight") != nullptr,
              true);
  }
}

TEST_F(Convert, ShardsHoldTheSameTensors) {
  train(kDense);
  convert(at("run"), at("one"), "hf");
  convert(at("run"), at("many"), "hf", {"--shard-size", "5000"});
  EXPECT_FALSE(fs::exists(at("many/model.safetensors")));
  ASSERT_TRUE(fs::exists(at("many/model.safetensors.index.json")));
  const hf::SafetensorsSet one(at("one")), many(at("many"));
  ASSERT_EQ(one.tensors().size(), many.tensors().size());
  std::uint64_t total = 0;
  for (const auto& [name, entry] : one.tensors()) {
    const auto a = entry.bytes(), b = many.find(name)->bytes();
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << name;
    total += a.size();
  }
  EXPECT_EQ(nlohmann::json::parse(read_text(at("many/model.safetensors.index.json")))["metadata"]["total_size"], total);
}

TEST_F(Convert, NarrowerTypesAreExactTheSecondTime) {
  train(kDense);
  for (const std::string dtype : {"bf16", "fp16"}) {
    convert(at("run"), at(dtype), "hf", {"--dtype", dtype});
    convert(at(dtype), at(dtype + "_sfa"), "sfa");
    convert(at(dtype + "_sfa"), at(dtype + "_again"), "hf");  // as it was imported
    EXPECT_EQ(read_text(at(dtype + "/model.safetensors")), read_text(at(dtype + "_again/model.safetensors"))) << dtype;
    EXPECT_NEAR(perplexity(at(dtype))["loss"].get<double>(), perplexity(at("run"))["loss"].get<double>(), 0.02);
  }
}

TEST_F(Convert, TheTiedHeadAndThePaddingAreNotWritten) {
  train(kDense);
  convert(at("run"), at("hf"), "hf");
  const hf::SafetensorsSet set(at("hf"));
  EXPECT_EQ(set.find("lm_head.weight"), nullptr);
  EXPECT_EQ(set.find("transformer.wte.weight")->tensor->shape, (std::vector<std::int64_t>{257, 16}));
  EXPECT_EQ(set.find("transformer.h.0.attn.c_attn.weight")->tensor->shape, (std::vector<std::int64_t>{16, 48}));
  EXPECT_EQ(nlohmann::json::parse(read_text(at("hf/config.json")))["eos_token_id"], 256);
}

TEST_F(Convert, FilesBesideTheWeightsAreCarriedAlong) {
  train(kDense);
  convert(at("run"), at("hf"), "hf");
  write_text(at("hf/generation_config.json"), "{\"temperature\": 0.6}");
  convert(at("hf"), at("sfa"), "sfa");
  convert(at("sfa"), at("again"), "hf");
  for (const char* name : {"generation_config.json", "tokenizer.json", "tokenizer_config.json"})
    EXPECT_EQ(read_text(at(std::string("again/") + name)), read_text(at(std::string("hf/") + name))) << name;
  EXPECT_NE(read_text(at("again/tokenizer.json")), "");
}

TEST_F(Convert, ATokenizerOfAnotherVocabularyIsRefused) {
  fs::copy(source_dir() + "/tests/golden/hf_gpt2", at("gpt2"));
  fs::copy_file(source_dir() + "/tests/tokenizer/golden/small_gpt2.json", at("gpt2/tokenizer.json"));
  for (const char* to : {"sfa", "hf"}) {
    const Ended ended = sfa({"convert", at("gpt2"), at("out"), "--to", to});
    EXPECT_EQ(ended.code, 1);
    EXPECT_NE(ended.err.find("has 439 ids, the model 67"), std::string::npos) << ended.err;
    EXPECT_FALSE(fs::exists(at("out")));
  }
}

TEST_F(Convert, BadRequestsAreOneSentenceAndLeaveNothing) {
  train(kDense);
  fs::create_directory(at("there"));
  const auto before = snapshot();
  struct Case {
    std::vector<std::string> arguments;
    int code;
    const char* says;
  };
  const std::vector<Case> cases{
      {{"convert", at("run"), at("there"), "--to", "hf"}, 1, "exists already"},
      {{"convert", at("nowhere"), at("out"), "--to", "hf"}, 1, "there is no checkpoint and no run folder"},
      {{"convert", at("run"), at("out"), "--to", "hf", "--ema"}, 1, "has no average of the weights"},
      {{"convert", at("run"), at("out"), "--to", "onnx"}, 2, "--to"},
      {{"convert", at("run"), at("out"), "--to", "sfa", "--dtype", "bf16"}, 2, "holds fp32 weights"},
      {{"convert", at("run"), at("out"), "--to", "hf", "--shard-size", "big"}, 2, "--shard-size"},
      {{"convert", at("data.h5"), at("out"), "--to", "hf"}, 1, "is a file"},
      {{"convert", at("run"), "/proc/nobody/out", "--to", "hf"}, 1, "could not create the folder"},
  };
  for (const Case& c : cases) {
    const Ended ended = sfa(c.arguments);
    EXPECT_EQ(ended.code, c.code) << ended.err;
    EXPECT_NE(ended.err.find(c.says), std::string::npos) << ended.err;
    EXPECT_EQ(snapshot(), before);
  }
}

class InitFrom : public Convert {};

TEST_F(InitFrom, ARunStartsFromTheWeightsAtStepZero) {
  train(kDense);
  convert(at("run"), at("hf"), "hf");
  for (const char* from : {"run", "hf"}) {
    // One step at learning rate 0 leaves the weights as they were.
    const std::string out = at(std::string("from_") + from);
    const Ended ended = sfa({"train", at("run.yaml"), kDense[0], kDense[1], "output_dir=" + out, "train.max_steps=1",
                             "init_from=" + at(from), "train.lr=1e-30", "train.weight_decay=0", "seed=99"});
    ASSERT_EQ(ended.code, 0) << ended.err;
    EXPECT_EQ(without_padding(weights(out)), without_padding(weights(at("run")))) << from;
    EXPECT_EQ(CheckpointReader(find_checkpoint(out)).step(), 1);
  }
}

TEST_F(InitFrom, DenseWeightsCanStartASparseRunAndResumeWins) {
  train(kDense);
  const std::vector<std::string> sparse{"train", at("run.yaml"), "output_dir=" + at("sparse"), "init_from=" + at("run"),
                                        "checkpoint.every=4"};
  auto first = sparse;
  first.emplace_back("train.max_steps=8");
  first.emplace_back("train.schedule=constant");
  ASSERT_EQ(sfa(first).code, 0);
  fs::remove_all(at("run"));  // no longer needed once there is a checkpoint
  first.emplace_back("--resume");
  first[5] = "train.max_steps=12";
  const Ended resumed = sfa(first);
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_NE(resumed.err.find("at step 8"), std::string::npos) << resumed.err;
  EXPECT_EQ(CheckpointReader(find_checkpoint(at("sparse"))).step(), 12);
}

TEST_F(InitFrom, AMapBehindTheRotationBeginsAsTheIdentityAndIsNotLostUnsaid) {
  train(qwen3(kDense));
  convert(at("run"), at("hf"), "hf");
  std::vector<std::string> mapped{"train",
                                  at("run.yaml"),
                                  "output_dir=" + at("mapped"),
                                  "init_from=" + at("hf"),
                                  "train.max_steps=1",
                                  "train.lr=1e-30",
                                  "train.weight_decay=0",
                                  "model.attention.rope_projection=shared"};
  mapped.insert(mapped.end(), kQwen3.begin(), kQwen3.end());
  const Ended ended = sfa(mapped);
  ASSERT_EQ(ended.code, 0) << ended.err;
  auto before = weights(at("run")), after = weights(at("mapped"));
  std::vector<float> identity(36);
  for (std::size_t i = 0; i < 6; ++i) identity[i * 7] = 1;
  for (const char* name : {"param/h.0.attn.q_rope.weight", "param/h.1.attn.k_rope.weight"}) {
    ASSERT_EQ(after[name].size(), 144u);
    std::vector<float> map(36);
    std::memcpy(map.data(), after[name].data(), 144);
    for (std::size_t i = 0; i < 36; ++i) EXPECT_NEAR(map[i], identity[i], 1e-20) << name;  // a step of 1e-30 was made
  }
  before["param/wte.weight"].resize(257 * 16 * 4);
  after["param/wte.weight"].resize(257 * 16 * 4);
  for (const auto& [name, bytes] : before) EXPECT_EQ(after[name], bytes) << name;

  mapped[2] = "output_dir=" + at("lost");
  mapped[3] = "init_from=" + at("mapped");
  mapped[7] = "model.attention.rope_projection=none";
  const Ended lost = sfa(mapped);
  EXPECT_EQ(lost.code, 1);
  EXPECT_NE(lost.err.find("rope_projection shared, this configuration has none"), std::string::npos) << lost.err;
}

TEST_F(InitFrom, GatesBeginAtOneAndAreNotLostUnsaid) {
  train();
  const std::vector<std::string> gated{"train",
                                       at("run.yaml"),
                                       "output_dir=" + at("gated"),
                                       "init_from=" + at("run"),
                                       "train.max_steps=1",
                                       "train.lr=1e-30",
                                       "train.weight_decay=0",
                                       "model.attention.gate=feature"};
  const Ended ended = sfa(gated);
  ASSERT_EQ(ended.code, 0) << ended.err;
  const auto before = weights(at("run"));
  auto after = weights(at("gated"));
  for (const auto& [name, bytes] : before) EXPECT_EQ(after[name], bytes) << name;
  const auto& bytes = after["param/h.0.attn.qk_gate.weight"];
  std::vector<float> gate(bytes.size() / sizeof(float));
  ASSERT_FALSE(gate.empty());
  std::memcpy(gate.data(), bytes.data(), bytes.size());
  for (const float g : gate) EXPECT_EQ(g, 1.0f);
  auto without = gated;
  without[2] = "output_dir=" + at("lost");
  without[3] = "init_from=" + at("gated");
  without.pop_back();
  const Ended lost = sfa(without);
  EXPECT_EQ(lost.code, 1);
  EXPECT_NE(lost.err.find("gate feature, this configuration has none"), std::string::npos) << lost.err;
}

TEST_F(InitFrom, TheVocabularyIsThatOfTheWeights) {
  train(kDense);
  convert(at("run"), at("hf"), "hf");
  const Ended wrong = sfa({"train", at("run.yaml"), kDense[0], kDense[1], "output_dir=" + at("x"),
                           "init_from=" + at("hf"), "model.vocab_size=300"});
  EXPECT_EQ(wrong.code, 1);
  EXPECT_NE(wrong.err.find("has model.vocab_size 257, this configuration has 300"), std::string::npos) << wrong.err;
  EXPECT_FALSE(fs::exists(at("x")));
}

TEST_F(InitFrom, AnotherArchitectureIsOneSentence) {
  train(kDense);
  const auto error = [&](const std::string& key) {
    const Ended ended =
        sfa({"train", at("run.yaml"), kDense[0], kDense[1], "output_dir=" + at("x"), "init_from=" + at("run"), key});
    EXPECT_EQ(ended.code, 1);
    EXPECT_FALSE(fs::exists(at("x")));
    return ended.err;
  };
  EXPECT_NE(error("model.num_hidden_layers=3").find("has model.num_hidden_layers 2, this configuration has 3"),
            std::string::npos);
  EXPECT_NE(error("model.hidden_size=32").find("has model.hidden_size 16, this configuration has 32"),
            std::string::npos);
  EXPECT_NE(error("init_from=" + at("nowhere")).find("there is no checkpoint"), std::string::npos);
}

}  // namespace
}  // namespace sfa::test
