// What a model's configuration leaves open is derived here, and what can't be is refused.
#include <utility>

#include "models/model.h"

namespace sfa {
namespace {

// Widths of a head. Heads share out the residual stream unless they are told to be narrower or wider; the features of
// Qwen3's queries and keys are rotated in pairs.
void resolve_heads(ModelConfig& m) {
  const bool gpt2 = m.arch == "gpt2";
  require(m.num_attention_heads % m.num_key_value_heads == 0,
          "model.num_key_value_heads: {} query heads can't be shared out evenly among {} key/value heads",
          m.num_attention_heads, m.num_key_value_heads);
  if (m.head_dim == 0)
    require(m.hidden_size % m.num_attention_heads == 0,
            "model.num_attention_heads: {} heads do not divide a hidden_size of {} (or set model.head_dim)",
            m.num_attention_heads, m.hidden_size);
  if (m.head_dim == 0) m.head_dim = m.hidden_size / m.num_attention_heads;
  if (m.qk_head_dim == 0) m.qk_head_dim = m.head_dim;
  require(gpt2 || m.qk_head_dim % 2 == 0, "model.{}: {} features can't be rotated in pairs; an even number is needed",
          m.qk_head_dim == m.head_dim ? "head_dim" : "attention.qk_head_dim", m.qk_head_dim);
}

// k features of a query or a key, where `key` of the configuration says so.
void check_features(const ModelConfig& m, std::int64_t k, bool of_queries, const std::string& key) {
  const std::string& selection = m.attention.selection;
  const std::int64_t D = m.qk_head_dim;
  require(k <= D, "{}: {} active features were asked for, but a head has qk_head_dim = {}", key, k, D);
  require(selection != "topk_2of4" || !of_queries || (D % 4 == 0 && k <= D / 2),
          "model.attention.selection: topk_2of4 keeps two of four features, so {} can be {} at the most (and "
          "qk_head_dim a multiple of 4), got {} of {}",
          key.substr(key.rfind('.') + 1), D / 2, k, D);
  require(
      selection != "topk_pairs" || (D % 2 == 0 && k % 2 == 0),
      "model.attention.selection: topk_pairs keeps whole pairs of features, so {} and qk_head_dim must be even, got "
      "{} of {}",
      key.substr(key.rfind('.') + 1), k, D);
}

// k of every block, where blocks differ.
void resolve_layers(ModelConfig& m) {
  const std::string key = "model.attention.k_by_layer";
  if (m.k_by_layer.empty()) return;
  require(m.k_by_layer.size() == static_cast<std::size_t>(m.num_hidden_layers),
          "{}: {} entries for a model of {} blocks (model.num_hidden_layers)", key, m.k_by_layer.size(),
          m.num_hidden_layers);
  require(m.attention.k_q == m.attention.k_k,
          "{}: sets the features of queries and keys alike; k_q = {} and k_k = {} are for all blocks", key,
          m.attention.k_q, m.attention.k_k);
  for (std::int64_t& k : m.k_by_layer) {
    require(k >= 0, "{}: must be from 1 to qk_head_dim = {}, or 0 for k, got {}", key, m.qk_head_dim, k);
    if (k == 0) k = m.attention.k_q;
    check_features(m, k, true, key);
  }
}

// Supports of SFA: how many features, by side, by block and on the way there.
void resolve_features(ModelConfig& m) {
  AttentionConfig& a = m.attention;
  for (int* side : {&a.k_q, &a.k_k}) {
    const char* key = side == &a.k_q ? "k_q" : "k_k";
    if (*side == 0) *side = static_cast<int>(m.k);
    require(*side >= 1,
            "model.attention.{}: sfa needs the number of active features, from 1 to qk_head_dim = {}, got {} (set "
            "model.attention.k)",
            key, m.qk_head_dim, *side);
    check_features(m, *side, side == &a.k_q, fmt::format("model.attention.{}", m.k == *side ? "k" : key));
  }
  resolve_layers(m);
  require(a.k_from >= 0, "train.k_anneal.from: must not be negative, got {}", a.k_from);
  check_features(m, a.k_from, true, "train.k_anneal.from");
  std::int64_t least = std::min(a.k_q, a.k_k);
  for (const std::int64_t k : m.k_by_layer) least = std::min(least, k);
  require(a.k_from == 0 || a.k_from > least,
          "train.k_anneal.from: k comes down from here to {}, so it must be more, got {}", least, a.k_from);
}

}  // namespace

void ModelConfig::resolve() {
  // Sizes stay far enough below 2^63 that no product of a few of them can leave it; memory ends long before.
  static constexpr std::int64_t kMost = 1 << 24;
  const auto positive = [](std::int64_t value, const char* key) {
    require(value >= 1, "model.{}: must be at least 1, got {}", key, value);
    require(value <= kMost, "model.{}: can be {} at the most, got {}", key, kMost, value);
  };
  positive(num_hidden_layers, "num_hidden_layers");
  positive(num_attention_heads, "num_attention_heads");
  positive(hidden_size, "hidden_size");
  positive(max_position_embeddings, "max_position_embeddings");
  require(vocab_size >= 0, "model.vocab_size: must not be negative, got {}", vocab_size);
  require(vocab_size <= kMost, "model.vocab_size: can be {} at the most, got {}", kMost, vocab_size);
  if (num_key_value_heads == 0) num_key_value_heads = num_attention_heads;
  if (intermediate_size == 0) intermediate_size = (arch == "qwen3" ? 3 : 4) * hidden_size;
  positive(num_key_value_heads, "num_key_value_heads");
  positive(intermediate_size, "intermediate_size");
  resolve_heads(*this);
  positive(head_dim, "head_dim");
  positive(qk_head_dim, "attention.qk_head_dim");
  for (const auto& [value, key] : {std::pair{layer_norm_epsilon, "layer_norm_epsilon"}, {rms_norm_eps, "rms_norm_eps"}})
    require(value >= 0, "model.{}: must not be negative, got {}", key, value);
  require(rope_theta > 0, "model.rope_theta: must be positive, got {}", rope_theta);
  require(rope_projection == "none" || rope_projection == "shared" || rope_projection == "per_head",
          "model.attention.rope_projection: '{}' is not known; there are none, shared and per_head", rope_projection);
  require(arch != "gpt2" || rope_projection == "none",
          "model.attention.rope_projection: gpt2 has no rotary positions to isolate; it must be none");
  require(arch != "gpt2" || tie_word_embeddings, "model.tie_word_embeddings: gpt2's head is always tied");
  if (qk_initializer_range == 0) qk_initializer_range = initializer_range;
  AttentionConfig& a = attention;
  require(k >= 0 && k <= kMost, "model.attention.k: must be from 1 to qk_head_dim = {}, got {}", qk_head_dim, k);
  require(a.window >= 0, "model.attention.window: must not be negative, got {}", a.window);
  require(a.score_scale == 0 || (a.score_scale >= 1e-4 && a.score_scale <= 1e4),
          "model.attention.score_scale: must be from 1e-4 to 1e4, or 0 for 1/sqrt(qk_head_dim), got {}", a.score_scale);
  require(a.gate == "none" || a.gate == "feature",
          "model.attention.gate: '{}' is not known; there are none and feature", a.gate);
  require(a.gate == "none" || a.type == "sfa",
          "model.attention.gate: only type 'sfa' selects features to gate, the type is '{}'", a.type);
  require(a.balance >= 0 && a.balance <= 1e4, "model.attention.balance: must be from 0 to 1e4, got {}", a.balance);
  require(a.balance == 0 || a.type == "sfa",
          "model.attention.balance: only type 'sfa' selects features to balance, the type is '{}'", a.type);
  require(a.kv_cache == "full" || a.kv_cache == "int8",
          "model.attention.kv_cache: '{}' is not known; there are full and int8", a.kv_cache);
  if (a.type != "sfa") {
    for (const auto& [features, key] : {std::pair<std::int64_t, const char*>{k, "k"}, {a.k_q, "k_q"}, {a.k_k, "k_k"}})
      require(features == 0, "model.attention.{}: only type 'sfa' selects features, the type is '{}'", key, a.type);
    require(k_by_layer.empty(), "model.attention.k_by_layer: only type 'sfa' selects features, the type is '{}'",
            a.type);
    require(a.k_from == 0, "train.k_anneal.from: only type 'sfa' selects features, the type is '{}'", a.type);
    return;
  }
  require(a.selection == "topk" || a.selection == "topk_2of4" || a.selection == "topk_pairs",
          "model.attention.selection: '{}' is not known; there are topk, topk_2of4 and topk_pairs", a.selection);
  require(a.zero_overlap == "score" || a.zero_overlap == "mask",
          "model.attention.zero_overlap: '{}' is not known; there are score and mask", a.zero_overlap);
  require(qk_head_dim <= 256,
          "model.attention: sfa keeps feature indices in one byte, so qk_head_dim can be 256 at the most, got {}",
          qk_head_dim);
  resolve_features(*this);
}

AttentionDims ModelConfig::attention_dims() const {
  return {.H = num_attention_heads, .G = num_key_value_heads, .Dqk = qk_head_dim, .Dv = head_dim};
}

AttentionConfig ModelConfig::attention_of(std::int64_t layer) const {
  AttentionConfig own = attention;
  if (!k_by_layer.empty()) own.k_q = own.k_k = static_cast<int>(k_by_layer[static_cast<std::size_t>(layer)]);
  return own;
}

std::int64_t ModelConfig::padded_vocab_size() const {
  return (vocab_size + kVocabularyPadding - 1) / kVocabularyPadding * kVocabularyPadding;
}

}  // namespace sfa
