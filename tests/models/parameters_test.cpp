// The parameter list and its initialisation, and what a configuration of a model refuses.
#include "models/parameters.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "models/model.h"
#include "support/tensors.h"

namespace sfa::test {
namespace {

ModelConfig small() {
  ModelConfig c;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 4;
  c.hidden_size = 64;
  c.max_position_embeddings = 32;
  c.vocab_size = 257;
  c.resolve();
  return c;
}

std::vector<float> initial(const ParameterList& list, std::uint64_t seed) {
  std::vector<float> flat(static_cast<std::size_t>(list.flat_size()), NAN);
  initialize_parameters(list, seed, Tensor(flat.data(), DType::f32, Device::cpu, {list.flat_size()}));
  return flat;
}

TEST(ParameterList, OffsetsAreAlignedAndDoNotOverlap) {
  const auto model = make_model(small(), Device::cpu, DType::f32);
  std::int64_t end = 0, count = 0;
  std::map<std::string, int> names;
  for (const Parameter& p : model->parameters().all()) {
    EXPECT_EQ(p.offset % ParameterList::kAlignment, 0) << p.name;
    EXPECT_GE(p.offset, end) << p.name;
    EXPECT_LT(p.offset - end, ParameterList::kAlignment) << p.name;
    end = p.offset + p.numel();
    count += p.numel();
    EXPECT_EQ(++names[p.name], 1) << p.name << " is listed twice";
    EXPECT_EQ(p.decay, p.shape.size() == 2) << p.name << ": matrices and embeddings decay, nothing else";
    std::int64_t rows = 0;
    for (const HfView& view : p.hf) rows += view.row_count;
    const bool padded = p.name == "wte.weight";
    EXPECT_EQ(rows, padded ? model->config().vocab_size : p.rows()) << p.name << ": the Hugging Face views cover it";
  }
  EXPECT_EQ(model->parameters().count(), count);
  EXPECT_GE(model->parameters().flat_size(), end);
  EXPECT_NE(model->parameters().find("h.2.mlp.down.weight"), nullptr);
  EXPECT_EQ(model->parameters().find("h.3.mlp.down.weight"), nullptr);
}

TEST(ParameterList, Gpt2SmallHas124Million) {
  ModelConfig c;
  c.vocab_size = 50257;
  c.resolve();
  const auto model = make_model(c, Device::cpu, DType::f32);
  // transformers' GPT2LMHeadModel: 124,439,808; here the vocabulary is padded to 50,304 rows.
  EXPECT_EQ(model->parameters().count() - (50304 - 50257) * 768, 124439808);
  EXPECT_EQ(model->cost(1024).parameters, 124439808.0);
}

// The published sizes, from transformers' Qwen3ForCausalLM; 151,936 is a multiple of the padding.
TEST(ParameterList, Qwen3HasThePublishedSizes) {
  struct Size {
    std::int64_t layers, hidden, heads, intermediate, parameters;
    bool tied;
  };
  for (const Size& size : {Size{28, 1024, 16, 3072, 596049920, true}, Size{28, 2048, 16, 6144, 1720574976, true},
                           Size{36, 2560, 32, 9728, 4022468096, true}, Size{36, 4096, 32, 12288, 8190735360, false}}) {
    ModelConfig c;
    c.arch = "qwen3";
    c.vocab_size = 151936;
    c.num_hidden_layers = size.layers;
    c.hidden_size = size.hidden;
    c.num_attention_heads = size.heads;
    c.num_key_value_heads = 8;
    c.head_dim = 128;
    c.intermediate_size = size.intermediate;
    c.tie_word_embeddings = size.tied;
    c.resolve();
    const auto model = make_model(c, Device::cpu, DType::f32);
    EXPECT_EQ(model->parameters().count(), size.parameters) << size.hidden;
    EXPECT_EQ(model->cost(1024).parameters, static_cast<double>(size.parameters)) << size.hidden;
  }
}

ModelConfig small_qwen3() {
  ModelConfig c;
  c.arch = "qwen3";
  c.num_hidden_layers = 2;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.head_dim = 24;
  c.hidden_size = 64;
  c.vocab_size = 257;
  c.tie_word_embeddings = false;
  c.rope_projection = "per_head";
  c.resolve();
  return c;
}

TEST(ParameterList, Qwen3GoesByHuggingFacesNames) {
  const auto model = make_model(small_qwen3(), Device::cpu, DType::f32);
  std::map<std::string, std::int64_t> rows;
  for (const Parameter& p : model->parameters().all()) {
    std::int64_t next = 0;
    for (const HfView& view : p.hf) {
      EXPECT_EQ(view.row_begin, next) << view.name;
      EXPECT_FALSE(view.transpose) << view.name;
      EXPECT_TRUE(rows.emplace(view.name, view.row_count).second) << view.name << " is there twice";
      next += view.row_count;
    }
    const bool padded = p.name == "wte.weight" || p.name == "head.weight";
    EXPECT_EQ(next, padded ? model->config().vocab_size : p.rows()) << p.name;
    EXPECT_EQ(p.decay, p.shape.size() == 2) << p.name;
  }
  const std::string l = "model.layers.1.";
  const std::map<std::string, std::int64_t> want{{"model.embed_tokens.weight", 257},
                                                 {"lm_head.weight", 257},
                                                 {"model.norm.weight", 64},
                                                 {l + "self_attn.q_proj.weight", 96},
                                                 {l + "self_attn.k_proj.weight", 48},
                                                 {l + "self_attn.v_proj.weight", 48},
                                                 {l + "self_attn.o_proj.weight", 64},
                                                 {l + "self_attn.q_norm.weight", 24},
                                                 {l + "self_attn.k_norm.weight", 24},
                                                 {l + "self_attn.q_rope_proj.weight", 96},
                                                 {l + "self_attn.k_rope_proj.weight", 48},
                                                 {l + "mlp.gate_proj.weight", 192},
                                                 {l + "mlp.up_proj.weight", 192},
                                                 {l + "mlp.down_proj.weight", 64},
                                                 {l + "input_layernorm.weight", 64},
                                                 {l + "post_attention_layernorm.weight", 64}};
  for (const auto& [name, count] : want) EXPECT_EQ(rows[name], count) << name;
  EXPECT_EQ(rows.size(), 3u + 2u * (want.size() - 3u));
}

// Runs of one seed with and without gates are comparable from their first step on.
TEST(Initialisation, IsTheSameBesideGates) {
  for (const char* arch : {"gpt2", "qwen3"}) {
    ModelConfig c;
    c.arch = arch;
    c.num_hidden_layers = 2;
    c.hidden_size = 64;
    c.num_attention_heads = 4;
    c.vocab_size = 100;
    c.attention.type = "sfa";
    c.k = 4;
    c.resolve();
    const auto plain = make_model(c, Device::cpu, DType::f32);
    c.attention.gate = "feature";
    const auto gated = make_model(c, Device::cpu, DType::f32);
    const auto a = initial(plain->parameters(), 11), b = initial(gated->parameters(), 11);
    ASSERT_NE(gated->parameters().find("h.1.attn.qk_gate.weight"), nullptr);
    for (const Parameter& p : plain->parameters().all()) {
      const Parameter* q = gated->parameters().find(p.name);
      ASSERT_NE(q, nullptr) << p.name;
      EXPECT_TRUE(std::equal(a.begin() + p.offset, a.begin() + p.offset + p.numel(), b.begin() + q->offset)) << p.name;
    }
  }
}

TEST(Initialisation, IsThatOfQwen3) {
  const auto model = make_model(small_qwen3(), Device::cpu, DType::f32);
  const auto flat = initial(model->parameters(), 11);
  for (const Parameter& p : model->parameters().all()) {
    const float* first = flat.data() + p.offset;
    if (p.name.find("rope") != std::string::npos) {
      for (std::int64_t i = 0; i < p.numel(); ++i)
        ASSERT_EQ(first[i], i / 24 % 24 == i % 24 ? 1.0f : 0.0f) << p.name << " is the identity of every head";
      continue;
    }
    double squares = 0;
    for (std::int64_t i = 0; i < p.numel(); ++i)
      squares += static_cast<double>(first[i]) * static_cast<double>(first[i]);
    const double n = static_cast<double>(p.numel()), deviation = std::sqrt(squares / n);
    if (p.shape.size() == 2)
      EXPECT_NEAR(deviation, 0.02, 5 * 0.02 / std::sqrt(2 * n)) << p.name << ", residual branches too";
    else
      EXPECT_EQ(std::count(first, first + p.numel(), 1.0f), p.numel()) << p.name;
  }
}

TEST(Initialisation, IsThatOfGpt2) {
  const auto model = make_model(small(), Device::cpu, DType::f32);
  const auto flat = initial(model->parameters(), 11);
  std::vector<bool> covered(flat.size());
  for (const Parameter& p : model->parameters().all()) {
    double sum = 0, squares = 0;
    for (std::int64_t i = 0; i < p.numel(); ++i) {
      const double x = flat[static_cast<std::size_t>(p.offset + i)];
      covered[static_cast<std::size_t>(p.offset + i)] = true;
      sum += x;
      squares += x * x;
    }
    const double n = static_cast<double>(p.numel()), mean = sum / n, deviation = std::sqrt(squares / n);
    if (p.shape.size() == 2) {
      const bool into_residual = p.name.ends_with("attn.proj.weight") || p.name.ends_with("mlp.down.weight");
      const double want = into_residual ? 0.02 / std::sqrt(2.0 * 3) : 0.02;
      EXPECT_NEAR(mean, 0.0, 5 * want / std::sqrt(n)) << p.name;
      EXPECT_NEAR(deviation, want, 5 * want / std::sqrt(2 * n)) << p.name;
    } else {
      EXPECT_EQ(mean, p.name.find("norm") != std::string::npos && p.name.ends_with("weight") ? 1.0 : 0.0) << p.name;
      EXPECT_EQ(deviation, std::fabs(mean)) << p.name;
    }
  }
  for (std::size_t i = 0; i < flat.size(); ++i)
    if (!covered[i]) {
      ASSERT_EQ(flat[i], 0.0f) << "padding at " << i;
    }
}

TEST(Initialisation, DependsOnTheSeedAndNothingElse) {
  const auto model = make_model(small(), Device::cpu, DType::f32);
  EXPECT_EQ(initial(model->parameters(), 1), initial(model->parameters(), 1));
  EXPECT_NE(initial(model->parameters(), 1), initial(model->parameters(), 2));
  // A parameter's numbers do not depend on how many there are after it.
  ModelConfig deeper = small();
  deeper.num_hidden_layers = 4;
  const auto other = make_model(deeper, Device::cpu, DType::f32);
  const auto a = initial(model->parameters(), 1), b = initial(other->parameters(), 1);
  const Parameter &pa = *model->parameters().find("h.1.attn.qkv.weight"),
                  &pb = *other->parameters().find("h.1.attn.qkv.weight");
  for (std::int64_t i = 0; i < pa.numel(); ++i)
    ASSERT_EQ(a[static_cast<std::size_t>(pa.offset + i)], b[static_cast<std::size_t>(pb.offset + i)]);
}

TEST(Initialisation, Identity) {
  ParameterList list;
  list.add({.name = "m", .shape = {6, 3}, .offset = 0, .decay = true, .init = Init::identity, .std_dev = 0, .hf = {}});
  const auto flat = initial(list, 1);
  for (int r = 0; r < 6; ++r)
    for (int c = 0; c < 3; ++c) EXPECT_EQ(flat[static_cast<std::size_t>(r * 3 + c)], r % 3 == c ? 1.0f : 0.0f);
}

TEST(ModelConfigTest, DerivesWhatIsLeftOpen) {
  ModelConfig c = small();
  EXPECT_EQ(c.num_key_value_heads, 4);
  EXPECT_EQ(c.intermediate_size, 256);
  EXPECT_EQ(c.qk_head_dim, 16);
  EXPECT_EQ(c.padded_vocab_size(), 320);
  EXPECT_EQ(c.attention_dims().Dv, 16);
  EXPECT_EQ(c.attention_dims().row(), 3 * 64);
  c = ModelConfig{};
  c.arch = "qwen3";
  c.num_attention_heads = 5;  // 768 is no multiple of it
  c.head_dim = 128;
  c.resolve();
  EXPECT_EQ(c.intermediate_size, 3 * 768);
  EXPECT_EQ(c.qk_head_dim, 128);
  EXPECT_EQ(c.attention_dims().Dv, 128);
  c = ModelConfig{};
  c.attention.type = "sfa";
  c.k = 8;
  c.attention.k_k = 16;
  c.resolve();
  EXPECT_EQ(c.attention.k_q, 8);
  EXPECT_EQ(c.attention.k_k, 16) << "k sets only what is not set";
  const ModelConfig once = c;
  c.resolve();
  EXPECT_EQ(c.attention.k_q, once.attention.k_q) << "resolving twice changes nothing";
}

// Each wrong value gives one sentence that names its key.
TEST(ModelConfigTest, RefusesWhatCannotBe) {
  const auto expect = [](const char* key, auto spoil) {
    ModelConfig c;
    c.hidden_size = 64;
    c.num_attention_heads = 4;
    c.vocab_size = 100;
    spoil(c);
    try {
      c.resolve();
      (void)make_model(c, Device::cpu, DType::f32);
      ADD_FAILURE() << "accepted: " << key;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(key), std::string::npos) << e.what();
      EXPECT_EQ(std::string(e.what()).find("internal error"), std::string::npos) << e.what();
    }
  };
  const auto sfa = [](ModelConfig& c, int k) {
    c.attention.type = "sfa";
    c.k = k;
  };
  expect("num_hidden_layers", [](ModelConfig& c) { c.num_hidden_layers = 0; });
  expect("hidden_size", [](ModelConfig& c) { c.hidden_size = -1; });
  expect("num_attention_heads", [](ModelConfig& c) { c.num_attention_heads = 5; });
  expect("num_key_value_heads", [](ModelConfig& c) { c.num_key_value_heads = 3; });
  expect("intermediate_size", [](ModelConfig& c) { c.intermediate_size = -4; });
  expect("max_position_embeddings", [](ModelConfig& c) { c.max_position_embeddings = 0; });
  expect("vocab_size", [](ModelConfig& c) { c.vocab_size = 0; });
  expect("vocab_size", [](ModelConfig& c) { c.vocab_size = -5; });
  expect("qk_head_dim", [](ModelConfig& c) { c.qk_head_dim = -2; });
  expect("head_dim", [](ModelConfig& c) { c.head_dim = -16; });
  const auto qwen3 = [](ModelConfig& c) { c.arch = "qwen3"; };
  expect("head_dim", [&](ModelConfig& c) {
    qwen3(c);
    c.num_attention_heads = 5;
  });
  expect("head_dim: 33", [&](ModelConfig& c) {
    qwen3(c);
    c.head_dim = 33;
  });
  expect("qk_head_dim: 7", [&](ModelConfig& c) {
    qwen3(c);
    c.qk_head_dim = 7;
  });
  expect("rope_theta", [&](ModelConfig& c) {
    qwen3(c);
    c.rope_theta = 0;
  });
  expect("rms_norm_eps", [&](ModelConfig& c) {
    qwen3(c);
    c.rms_norm_eps = -1;
  });
  expect("rope_projection", [&](ModelConfig& c) {
    qwen3(c);
    c.rope_projection = "linear";
  });
  expect("rope_projection", [](ModelConfig& c) { c.rope_projection = "shared"; });
  expect("tie_word_embeddings", [](ModelConfig& c) { c.tie_word_embeddings = false; });
  expect("window", [](ModelConfig& c) { c.attention.window = -1; });
  expect("arch", [](ModelConfig& c) { c.arch = "gpt3"; });
  expect("attention.type", [](ModelConfig& c) { c.attention.type = "sparse"; });
  expect("attention.impl", [](ModelConfig& c) { c.attention.impl = "magic"; });
  expect("attention.k", [](ModelConfig& c) { c.k = 4; });
  expect("attention.k", [&](ModelConfig& c) { sfa(c, 0); });
  expect("attention.k", [&](ModelConfig& c) { sfa(c, 17); });
  expect("attention.k", [&](ModelConfig& c) { sfa(c, -3); });
  expect("k_k", [&](ModelConfig& c) {
    sfa(c, 4);
    c.attention.k_k = 100;
  });
  expect("256", [&](ModelConfig& c) {
    sfa(c, 4);
    c.qk_head_dim = 300;
  });
  expect("selection", [&](ModelConfig& c) {
    sfa(c, 9);
    c.attention.selection = "topk_2of4";
  });
  expect("even", [&](ModelConfig& c) {
    sfa(c, 4);
    c.attention.selection = "topk_pairs";
    c.attention.k_k = 3;
  });
  expect("selection", [&](ModelConfig& c) {
    sfa(c, 4);
    c.attention.selection = "topk_3of4";
  });
  for (const double scale : {-1.0, 1e39, 1e-46, std::numeric_limits<double>::quiet_NaN()})
    expect("score_scale", [&](ModelConfig& c) { c.attention.score_scale = scale; });
  for (const double balance : {-0.1, 1e5, std::numeric_limits<double>::quiet_NaN()})
    expect("balance", [&](ModelConfig& c) {
      sfa(c, 4);
      c.attention.balance = balance;
    });
  expect("balance: only type 'sfa'", [](ModelConfig& c) { c.attention.balance = 0.01; });
  expect("gate: 'head' is not known", [&](ModelConfig& c) {
    sfa(c, 4);
    c.attention.gate = "head";
  });
  expect("gate: only type 'sfa'", [](ModelConfig& c) { c.attention.gate = "feature"; });
  for (const int from : {-1, 3, 4})
    expect("k_anneal.from", [&](ModelConfig& c) {
      sfa(c, 4);
      c.attention.k_from = from;
    });
  expect("k_by_layer", [](ModelConfig& c) { c.k_by_layer.assign(12, 4); });
  const auto layers = [&](std::vector<std::int64_t> k) {
    return [&sfa, k](ModelConfig& c) {
      sfa(c, 4);
      c.k_by_layer = k;
    };
  };
  expect("attention.k_q: sfa needs", [&](ModelConfig& c) {
    sfa(c, 4);
    c.attention.k_q = -1;
  });
  expect("attention.k_k: only type 'sfa'", [](ModelConfig& c) { c.attention.k_k = 4; });
  expect("k_by_layer: 3 entries for a model of 12 blocks", layers({4, 4, 4}));
  expect("k_by_layer: must be from 1", layers({4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, -1}));
  expect("k_by_layer: 17 active features", layers({17, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4}));
  expect("k_by_layer: sets the features of queries and keys alike", [&](ModelConfig& c) {
    layers(std::vector<std::int64_t>(12, 4))(c);
    c.attention.k_q = 5;
  });
  expect("k_by_layer can be 8 at the most", [&](ModelConfig& c) {
    layers({9, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4})(c);
    c.attention.selection = "topk_2of4";
  });
  expect("k_anneal.from", [](ModelConfig& c) { c.attention.k_from = 8; });
  expect("k_anneal.from: 17 active features", [&](ModelConfig& c) {
    sfa(c, 4);
    c.attention.k_from = 17;
  });
  expect("from can be 8 at the most", [&](ModelConfig& c) {
    sfa(c, 4);
    c.attention.k_from = 9;
    c.attention.selection = "topk_2of4";
  });
  expect("zero_overlap", [&](ModelConfig& c) {
    sfa(c, 4);
    c.attention.zero_overlap = "drop";
  });
}

}  // namespace
}  // namespace sfa::test
