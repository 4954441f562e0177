// config.json of transformers <-> model.*: what is read, what is written, what is refused and with which words.
#include "hf/config_file.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace sfa::hf {
namespace {
using nlohmann::json;

json gpt2() {
  return json::parse(R"({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257,
    "n_positions": 1024, "n_ctx": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": null,
    "activation_function": "gelu_new", "resid_pdrop": 0.1, "layer_norm_epsilon": 1e-05, "initializer_range": 0.02,
    "scale_attn_weights": true, "use_cache": true, "bos_token_id": 50256, "eos_token_id": 50256})");
}

std::string error_of(const json& config) {
  try {
    config_from_hf(config, "F/config.json", {});
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}
json with(json config, const std::string& key, const json& value) {
  config[key] = value;
  return config;
}
json without(json config, const std::string& key) {
  config.erase(key);
  return config;
}

TEST(HfConfig, ReadsGpt2) {
  const Config c = config_from_hf(with(gpt2(), "layer_norm_epsilon", 3e-6), "F/config.json", {"seed=7"});
  EXPECT_EQ(c.model.arch, "gpt2");
  EXPECT_EQ(c.model.vocab_size, 50257);
  EXPECT_EQ(c.model.max_position_embeddings, 1024);
  EXPECT_EQ(c.model.hidden_size, 768);
  EXPECT_EQ(c.model.num_hidden_layers, 12);
  EXPECT_EQ(c.model.intermediate_size, 3072);
  EXPECT_EQ(c.model.layer_norm_epsilon, 3e-6);
  EXPECT_EQ(c.model.attention.type, "dense");
  EXPECT_EQ(c.data.seq_len, 1024);
  EXPECT_EQ(c.seed, 7);
}

json qwen3() {
  return json::parse(R"({"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000, "rope_scaling": null,
    "attention_bias": false, "attention_dropout": 0.0, "use_sliding_window": false, "sliding_window": null,
    "max_window_layers": 28, "tie_word_embeddings": true, "initializer_range": 0.02, "torch_dtype": "bfloat16"})");
}

TEST(HfConfig, ReadsQwen3) {
  const Config c = config_from_hf(with(qwen3(), "tie_word_embeddings", false), "F", {});
  EXPECT_EQ(c.model.arch, "qwen3");
  EXPECT_EQ(c.model.num_key_value_heads, 8);
  EXPECT_EQ(c.model.head_dim, 128);
  EXPECT_EQ(c.model.rms_norm_eps, 1e-6);
  EXPECT_EQ(c.model.rope_theta, 1e6);
  EXPECT_FALSE(c.model.tie_word_embeddings);
  EXPECT_EQ(c.model.max_position_embeddings, 40960);
  // Where transformers 5 has it.
  const json moved =
      with(without(qwen3(), "rope_theta"), "rope_parameters", {{"rope_theta", 5e5}, {"rope_type", "default"}});
  EXPECT_EQ(config_from_hf(moved, "F", {}).model.rope_theta, 5e5);
}

TEST(HfConfig, RefusesQwen3VariantsThatWeDoNotCompute) {
  const json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}};
  const std::vector<std::pair<json, std::string>> cases{
      {with(qwen3(), "rope_scaling", yarn), "rope_scaling asks for rope_type \"yarn\""},
      {with(qwen3(), "rope_parameters", yarn), "rope_parameters asks for rope_type \"yarn\""},
      {with(qwen3(), "rope_scaling", {{"type", "linear"}, {"factor", 2}}), "rope_type \"linear\""},
      {with(qwen3(), "use_sliding_window", true), "use_sliding_window is true"},
      {with(qwen3(), "layer_types", {"full_attention", "sliding_attention"}), "layer_types has \"sliding_attention\""},
      {with(qwen3(), "attention_bias", true), "attention_bias is true"},
      {with(qwen3(), "hidden_act", "gelu"), "hidden_act is \"gelu\""},
      {without(qwen3(), "head_dim"), "head_dim is missing"},
      {with(qwen3(), "model_type", "qwen3_moe"), "model_type \"qwen3_moe\" is not supported; there is: gpt2, qwen3"},
  };
  for (const auto& [config, says] : cases)
    EXPECT_NE(error_of(config).find(says), std::string::npos) << error_of(config);
}

TEST(HfConfig, LongContextsDoNotBecomeLongWindows) {
  EXPECT_EQ(config_from_hf(with(gpt2(), "n_positions", 8192), "F", {}).data.seq_len, kSequence);
  EXPECT_EQ(config_from_hf(with(gpt2(), "n_positions", 8192), "F", {"data.seq_len=4096"}).data.seq_len, 4096);
}

TEST(HfConfig, RefusesWhatWeDoNotComputeWithOneSentence) {
  const std::vector<std::pair<json, std::string>> cases{
      {without(gpt2(), "model_type"), "F/config.json: has no model_type"},
      {with(gpt2(), "model_type", "llama"), "model_type \"llama\" is not supported; there is: gpt2"},
      {with(gpt2(), "model_type", 3), "has no model_type"},
      {without(gpt2(), "n_embd"), "F/config.json: n_embd is missing"},
      {with(gpt2(), "n_embd", "wide"), "n_embd is \"wide\"; a number is expected"},
      {with(gpt2(), "n_head", 7), "7 heads do not divide a hidden_size of 768"},
      {with(gpt2(), "n_layer", -1), "must be at least 1"},
      {with(gpt2(), "n_layer", 1e30), "whole number"},
      {with(gpt2(), "activation_function", "relu"), "activation_function is \"relu\"; only \"gelu_new\" is supported"},
      {with(gpt2(), "scale_attn_by_inverse_layer_idx", true), "scale_attn_by_inverse_layer_idx is true"},
      {with(gpt2(), "scale_attn_weights", false), "scale_attn_weights is false"},
      {with(gpt2(), "add_cross_attention", true), "add_cross_attention is true"},
      {with(gpt2(), "tie_word_embeddings", false), "tie_word_embeddings is false"},
      {with(gpt2(), "rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}), "rope_type \"yarn\""},
      {with(gpt2(), "model_type", "sfa_gpt2"), "no settings of the attention under \"sfa\""},
      {with(with(gpt2(), "model_type", "sfa_gpt2"), "sfa", {{"kk", 3}}), "sfa has a key '\"kk\"', which this build"},
      {with(with(gpt2(), "model_type", "sfa_gpt2"), "sfa", {{"type", "sfa, seed: 3"}}), "neither a number, a list"},
      {with(with(gpt2(), "model_type", "sfa_gpt2"), "sfa", {{"k_by_layer", {8, "x"}}}), "neither a number, a list"},
  };
  for (const auto& [config, says] : cases) {
    const std::string said = error_of(config);
    EXPECT_NE(said.find(says), std::string::npos) << config.dump() << "\n-> " << said;
    EXPECT_EQ(said.find('\n'), std::string::npos) << said;
  }
}

TEST(HfConfig, WritesWhatItReads) {
  for (const std::string& attention : {std::string("type=dense"), std::string("type=sfa")}) {
    std::vector<std::string> overrides{"output_dir=x",
                                       "model.vocab_size=300",
                                       "model.hidden_size=64",
                                       "model.num_attention_heads=4",
                                       "model.intermediate_size=100",
                                       "model.layer_norm_epsilon=1e-6",
                                       "model.attention." + attention};
    if (attention == "type=sfa")
      for (const char* more : {"k_q=4", "k_k=6", "selection=topk_2of4", "zero_overlap=mask", "window=9"})
        overrides.push_back(std::string("model.attention.") + more);
    const Config before = parse_config("", "", overrides);
    const auto written = config_to_hf(before, "BF16");
    EXPECT_EQ(written["torch_dtype"], "bfloat16");
    EXPECT_EQ(written["model_type"], attention == "type=sfa" ? "sfa_gpt2" : "gpt2");
    EXPECT_EQ(written.contains("auto_map"), attention == "type=sfa");
    const Config after = config_from_hf(json::parse(written.dump()), "F", {"output_dir=x"});
    EXPECT_EQ(dump_config(after), dump_config(before));
  }
}

TEST(HfConfig, WritesBlocksOfTheirOwnKAndTheFactorOfScores) {
  const std::vector<std::string> size{"output_dir=x", "model.vocab_size=300", "model.num_hidden_layers=3"};
  for (const std::vector<std::string>& attention :
       {std::vector<std::string>{"type=sfa", "k=8", "k_by_layer=[3, 9, 8]", "score_scale=0.375"},
        {"type=dense", "score_scale=0.2"}}) {
    std::vector<std::string> overrides = size;
    for (const std::string& key : attention) overrides.push_back("model.attention." + key);
    const Config before = parse_config("", "", overrides);
    const auto written = config_to_hf(before, "F32");
    EXPECT_EQ(written["model_type"], "sfa_gpt2");
    EXPECT_EQ(written["sfa"]["score_scale"], before.model.attention.score_scale);
    EXPECT_EQ(written["sfa"].contains("k_by_layer"), before.model.attention.type == "sfa");
    const Config after = config_from_hf(json::parse(written.dump()), "F", {"output_dir=x"});
    EXPECT_EQ(after.model.attention.score_scale, before.model.attention.score_scale);
    EXPECT_EQ(after.model.k_by_layer, before.model.k_by_layer);
  }
  const std::vector<std::string> plain{"output_dir=x", "model.vocab_size=300", "model.attention.type=sfa",
                                       "model.attention.k=4"};
  for (const char* key : {"score_scale", "gate"})
    EXPECT_FALSE(config_to_hf(parse_config("", "", plain), "F32")["sfa"].contains(key))
        << "what says nothing is not written";
  std::vector<std::string> gated = plain;
  gated.emplace_back("model.attention.gate=feature");
  const auto written = config_to_hf(parse_config("", "", gated), "F32");
  EXPECT_EQ(written["sfa"]["gate"], "feature");
  EXPECT_EQ(config_from_hf(json::parse(written.dump()), "F", {"output_dir=x"}).model.attention.gate, "feature");
}

TEST(HfConfig, WritesTheQwen3ThatItReads) {
  for (const std::string kind : {"none", "shared", "per_head"}) {
    const Config before = config_from_hf(qwen3(), "F", {"model.attention.rope_projection=" + kind});
    const auto written = config_to_hf(before, "BF16");
    EXPECT_EQ(written["model_type"], kind == "none" ? "qwen3" : "sfa_qwen3");
    EXPECT_EQ(dump_config(config_from_hf(json::parse(written.dump()), "F", {})), dump_config(before));
  }
}

TEST(HfConfig, RefusesToExportWhatGpt2CannotBe) {
  for (const char* key : {"model.num_key_value_heads=2", "model.attention.qk_head_dim=24"}) {
    const Config c = parse_config("", "", {"output_dir=x", "model.vocab_size=300", key});
    try {
      config_to_hf(c, "F32");
      FAIL() << key;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("can't be exported"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace sfa::hf
