// Checkpoints as transformers saves them: loaded from where they lie, and the same logits.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>

#include "golden/golden_file.h"
#include "hf/config_file.h"
#include "hf/logits.h"
#include "hf/model_source.h"

namespace sfa::test {
namespace {
namespace fs = std::filesystem;

std::string golden(const std::string& name) {
  return source_dir() + "/tests/golden/" + name;
}

void expect_logits(const std::string& name) {
  const GoldenFile file = read_golden(name + ".bin");
  const std::vector<std::int32_t>& tokens = file.at("tokens").integers;
  const std::vector<float>& expected = file.at("logits").floats;
  for (const std::string& device : devices()) {
    LoadedModel loaded = load(golden(name), device);
    const auto logits = logits_of(loaded, tokens);
    double worst = 0;
    for (std::size_t t = 0, i = 0; t < logits.size(); ++t)
      for (const float x : logits[t]) worst = std::max(worst, std::fabs(static_cast<double>(x) - expected.at(i++)));
    EXPECT_LT(worst, device == "cpu" ? 1e-5 : 1e-4) << name << " on " << device;
  }
}

TEST(HfImport, Gpt2InFp32HasTheLogitsOfTransformers) {
  expect_logits("hf_gpt2");
}
TEST(HfImport, Gpt2InBf16ShardsHasTheLogitsOfTransformers) {
  expect_logits("hf_gpt2_bf16_shards");
}
TEST(HfImport, Gpt2InFp16WithoutItsHeadHasTheLogitsOfTransformers) {
  expect_logits("hf_gpt2_fp16_base");
}
TEST(HfImport, Qwen3TiedHasTheLogitsOfTransformers) {
  expect_logits("hf_qwen3_tied");
}
TEST(HfImport, Qwen3UntiedInBf16ShardsHasTheLogitsOfTransformers) {
  expect_logits("hf_qwen3_untied");
}
TEST(HfImport, ALoneSafetensorsFileIsTakenWithTheConfigBesideIt) {
  const LoadedModel loaded = load(golden("hf_gpt2/model.safetensors"));
  EXPECT_EQ(loaded.config().model.intermediate_size, 40);
}

// A copy of hf_gpt2 that a test may spoil.
class HfDamage : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              ("sfa_hf_" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()) + "_" +
               std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::copy(golden("hf_gpt2"), folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  void set(const std::string& key, const nlohmann::json& value) const {
    nlohmann::json config = hf::read_json_file((folder_ / "config.json").string());
    config[key] = value;
    std::ofstream(folder_ / "config.json", std::ios::trunc) << config.dump();
  }
  // The tensors but `without`, and the same bytes for another name and shape where one is given.
  void rewrite(const std::string& without, const hf::SafetensorsWriter::Planned& in_place = {}) const {
    const std::string path = (folder_ / "model.safetensors").string();
    {
      const hf::SafetensorsFile old(path);
      std::vector<hf::SafetensorsWriter::Planned> planned;
      for (const auto& [name, tensor] : old.tensors())
        if (name != without)
          planned.push_back({name, tensor.dtype, tensor.shape});
        else if (!in_place.name.empty())
          planned.push_back(in_place);
      hf::SafetensorsWriter writer(path + ".new", planned, {});
      for (const auto& p : planned) {
        const auto bytes = old.bytes(old.tensors().at(p.name == in_place.name ? without : p.name));
        writer.add(p.name, bytes.first(p.bytes()));
      }
      writer.finish();
    }
    fs::rename(path + ".new", path);
  }
  [[nodiscard]] std::string error() const {
    try {
      load(folder_.string());
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
      return e.what();
    }
    return "";
  }
  fs::path folder_;
};

TEST_F(HfDamage, AMissingTensorIsNamed) {
  rewrite("transformer.h.1.mlp.c_fc.bias");
  EXPECT_NE(error().find("the tensor 'transformer.h.1.mlp.c_fc.bias' is missing"), std::string::npos) << error();
}
TEST_F(HfDamage, AWrongShapeIsGivenWithBoth) {
  set("n_inner", 39);
  EXPECT_NE(error().find("'transformer.h.0.mlp.c_fc.weight' has shape [16, 40], the model's has [16, 39]"),
            std::string::npos)
      << error();
}
TEST_F(HfDamage, ATensorThatTheArchitectureLacksIsNamed) {
  rewrite("transformer.ln_f.bias", {"transformer.ln_f.gate", "F32", {16}});
  EXPECT_NE(error().find("'transformer.ln_f.bias' is missing"), std::string::npos) << error();
  set("n_layer", 1);
  EXPECT_NE(error().find("is missing"), std::string::npos) << error();
}
TEST_F(HfDamage, MoreLayersThanTheConfigSaysAreNotLeftOutSilently) {
  set("n_layer", 1);
  EXPECT_NE(error().find("has a tensor 'transformer.h.1."), std::string::npos) << error();
}
TEST_F(HfDamage, WeightsOfIntegersAreRefused) {
  rewrite("transformer.ln_f.bias", {"transformer.ln_f.bias", "I32", {16}});
  EXPECT_NE(error().find("'transformer.ln_f.bias' is I32; F32, BF16 and F16 are read"), std::string::npos) << error();
}
TEST_F(HfDamage, NoConfigOrNoWeightsIsOneSentence) {
  fs::remove(folder_ / "model.safetensors");
  EXPECT_NE(error().find("has neither model.safetensors nor"), std::string::npos) << error();
  fs::copy(golden("hf_gpt2/model.safetensors"), folder_ / "model.safetensors");
  std::ofstream(folder_ / "config.json", std::ios::trunc) << "{";
  EXPECT_NE(error().find("config.json: is not valid JSON"), std::string::npos) << error();
  fs::remove(folder_ / "config.json");
  EXPECT_NE(error().find("config.json does not exist"), std::string::npos) << error();
}

TEST_F(HfDamage, SizesThatTheWeightsDoNotHaveTakeNoMemory) {
  set("n_layer", 16'000'000);
  EXPECT_NE(error().find("has 16000000 layers, the weights 28 tensors altogether"), std::string::npos) << error();
  set("n_layer", 2);
  set("n_positions", 16'000'000);
  EXPECT_NE(error().find("'transformer.wpe.weight' has shape [16, 16], the model's has [16000000, 16]"),
            std::string::npos)
      << error();
}

// Whatever a single byte of the header is changed to, the file loads or ends in one sentence.
TEST_F(HfDamage, FlippedBytesOfTheHeaderDoNoHarm) {
  const std::string path = (folder_ / "model.safetensors").string();
  std::ifstream in(path, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  int refused = 0;
  for (std::size_t at = 0; at < 600; at += 7) {
    std::string spoilt = whole;
    spoilt[at] = static_cast<char>(spoilt[at] ^ 0x11);
    std::ofstream(path, std::ios::binary | std::ios::trunc) << spoilt;
    refused += !error().empty();
  }
  EXPECT_GT(refused, 70);
}

}  // namespace
}  // namespace sfa::test
