#include "hf/config_file.h"

#include <algorithm>
#include <map>
#include <optional>

#include "core/error.h"
#include "core/file.h"
#include "hf/element.h"

namespace sfa::hf {
namespace {
using nlohmann::json;
using nlohmann::ordered_json;

// A number that both have. When theirs is absent or null, ours keeps its default; `needed` ones must be there.
struct Key {
  const char* theirs;
  const char* ours;
  bool needed = true;
};
// An option that our layers have with these values alone; the first is what absence means. Written on export when
// `written`.
struct Fixed {
  const char* key;
  std::vector<json> values;
  bool written = true;
};
struct Architecture {
  const char* arch;       // model.arch, and model_type there
  const char* hf_class;   // of transformers
  const char* sfa_class;  // of modeling_sfa.py
  const char* sfa_config;
  std::vector<Key> keys;
  std::vector<Fixed> fixed;
};

const std::vector<Architecture>& architectures() {
  static const std::vector<Architecture> all{
      {"gpt2",
       "GPT2LMHeadModel",
       "SfaGPT2LMHeadModel",
       "SfaGPT2Config",
       {{"vocab_size", "model.vocab_size"},
        {"n_positions", "model.max_position_embeddings"},
        {"n_embd", "model.hidden_size"},
        {"n_layer", "model.num_hidden_layers"},
        {"n_head", "model.num_attention_heads"},
        {"n_inner", "model.intermediate_size", false},
        {"layer_norm_epsilon", "model.layer_norm_epsilon", false},
        {"initializer_range", "model.initializer_range", false}},
       {{"activation_function", {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"}},
        {"scale_attn_weights", {true}},
        {"scale_attn_by_inverse_layer_idx", {false}},
        {"add_cross_attention", {false}},
        {"tie_word_embeddings", {true}}}},
      {"qwen3",
       "Qwen3ForCausalLM",
       "SfaQwen3ForCausalLM",
       "SfaQwen3Config",
       {{"vocab_size", "model.vocab_size"},
        {"max_position_embeddings", "model.max_position_embeddings"},
        {"hidden_size", "model.hidden_size"},
        {"num_hidden_layers", "model.num_hidden_layers"},
        {"num_attention_heads", "model.num_attention_heads"},
        {"num_key_value_heads", "model.num_key_value_heads"},
        {"head_dim", "model.head_dim"},
        {"intermediate_size", "model.intermediate_size"},
        {"rms_norm_eps", "model.rms_norm_eps", false},
        {"rope_theta", "model.rope_theta", false},
        {"tie_word_embeddings", "model.tie_word_embeddings", false},
        {"initializer_range", "model.initializer_range", false}},
       {{"hidden_act", {"silu"}}, {"attention_bias", {false}}, {"use_sliding_window", {false}}}},
  };
  return all;
}

// Settings under "sfa" of config.json: their name there is the last part of ours.
const std::vector<const char*> kSfaKeys{"type",         "k_q",    "k_k",         "k_by_layer",      "selection",
                                        "zero_overlap", "window", "qk_head_dim", "rope_projection", "score_scale",
                                        "gate"};

const Architecture* find_architecture(const std::string& name) {
  for (const Architecture& a : architectures())
    if (name == a.arch || name == std::string("sfa_") + a.arch) return &a;
  return nullptr;
}

std::string words(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  return text.size() > 100 ? text.substr(0, 100) + "..." : text;
}

void check_fixed(const Architecture& a, const json& config, const std::string& where) {
  for (const Fixed& option : a.fixed) {
    const auto it = config.find(option.key);
    if (it == config.end() || it->is_null()) continue;
    const bool known = std::find(option.values.begin(), option.values.end(), *it) != option.values.end();
    require(known, "{}: {} is {}; only {} is supported", where, option.key, words(*it), words(option.values.front()));
  }
  if (const auto it = config.find("layer_types"); it != config.end() && it->is_array())
    for (const json& type : *it)
      require(type == "full_attention", "{}: layer_types has {}; only \"full_attention\" is supported", where,
              words(type));
}

// rope_theta stands alone, or in rope_parameters from transformers 5 on; scaled rotations are not what we compute.
std::optional<json> rope_theta(const json& config, const std::string& where) {
  std::optional<json> theta;
  if (const auto it = config.find("rope_theta"); it != config.end() && !it->is_null()) theta = *it;
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const auto it = config.find(key);
    if (it == config.end() || it->is_null()) continue;
    require(it->is_object(), "{}: {} is {}; an object is expected", where, key, words(*it));
    for (const char* kind : {"rope_type", "type"})
      if (const auto type = it->find(kind); type != it->end())
        require(*type == "default", "{}: {} asks for rope_type {}; only \"default\" (no scaling) is supported", where,
                key, words(*type));
    if (const auto inner = it->find("rope_theta"); inner != it->end()) theta = *inner;
  }
  return theta;
}

using Values = std::map<std::string, std::string>;  // our key -> value as YAML

void take_sfa_settings(const json& config, const std::string& where, Values& values) {
  const auto it = config.find("sfa");
  require(it != config.end() && it->is_object(), "{}: has no settings of the attention under \"sfa\"", where);
  for (const auto& [key, value] : it->items()) {
    const bool known =
        std::any_of(kSfaKeys.begin(), kSfaKeys.end(), [&k = key](const char* name) { return k == name; });
    require(known, "{}: sfa has a key '{}', which this build does not know", where, words(json(key)));
    const auto whole = [](const json& part) { return part.is_number_integer(); };
    const bool plain =
        value.is_number() || (value.is_array() && std::all_of(value.begin(), value.end(), whole)) ||
        (value.is_string() && !value.get<std::string>().empty() &&
         value.get<std::string>().find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string::npos);
    require(plain, "{}: sfa.{} is {}, neither a number, a list of whole ones, nor a word", where, key, words(value));
    values["model.attention." + key] = value.is_string() ? value.get<std::string>() : value.dump();
  }
  const auto q = values.find("model.attention.k_q"), k = values.find("model.attention.k_k");
  if (q != values.end() && k != values.end() && q->second == k->second) values["model.attention.k"] = q->second;
}

// Every key that the architecture has, with its value.
class Collector final : public ConfigVisitor {
 public:
  explicit Collector(std::string arch) : arch_(std::move(arch)) {}
  std::map<std::string, json> values;
  void key(const KeyInfo& info, std::string& value) override { put(info, value); }
  void key(const KeyInfo& info, std::int64_t& value) override { put(info, value); }
  void key(const KeyInfo& info, double& value) override { put(info, value); }
  void key(const KeyInfo& info, bool& value) override { put(info, value); }
  void key(const KeyInfo&, StepRange&) override {}
  void key(const KeyInfo& info, std::vector<std::int64_t>& value) override { put(info, value); }

 private:
  void put(const KeyInfo& info, const json& value) {
    if (info.arch.empty() || info.arch == arch_) values[info.path] = value;
  }
  std::string arch_;
};

std::map<std::string, json> values_of(Config config) {
  Collector collector(config.model.arch);
  visit_config(config, collector);
  return std::move(collector.values);
}

const json& value_of(const std::map<std::string, json>& values, const std::string& key) {
  const auto it = values.find(key);
  require(it != values.end(), "internal error: there is no key {}", key);
  return it->second;
}

}  // namespace

json read_json_file(const std::string& path) {
  constexpr std::uint64_t kMost = 64'000'000;
  const File file = File::open_to_read(path);
  require(file.size() <= kMost, "{}: has {} bytes, which is no configuration", path, file.size());
  std::string text(file.size(), '\0');
  file.read_at(0, text.data(), text.size());
  json parsed;
  try {
    parsed = json::parse(text, [&](int depth, json::parse_event_t, json&) {
      require(depth <= 32, "{}: is nested deeper than 32 levels", path);
      return true;
    });
  } catch (const json::exception&) {
    fail("{}: is not valid JSON", path);
  }
  require(parsed.is_object(), "{}: is not a JSON object", path);
  return parsed;
}

Config config_from_hf(const json& config, const std::string& where, const std::vector<std::string>& overrides) {
  const auto type = config.find("model_type");
  require(type != config.end() && type->is_string(), "{}: has no model_type", where);
  const Architecture* a = find_architecture(type->get<std::string>());
  if (!a) {
    std::string known;
    for (const Architecture& each : architectures()) known += (known.empty() ? "" : ", ") + std::string(each.arch);
    fail("{}: model_type {} is not supported; there is: {}", where, words(*type), known);
  }
  check_fixed(*a, config, where);
  Values values{{"model.arch", a->arch}, {"output_dir", "'-'"}};
  const std::optional<json> theta = rope_theta(config, where);
  for (const Key& key : a->keys) {
    const bool is_theta = std::string_view(key.theirs) == "rope_theta";
    const auto it = config.find(key.theirs);
    const json value = is_theta ? theta.value_or(json()) : it == config.end() ? json() : *it;
    if (value.is_null() && !key.needed) continue;
    require(value.is_number() || value.is_boolean(), "{}: {} is {}; a number is expected", where, key.theirs,
            value.is_null() ? "missing" : words(value));
    values[key.ours] = value.dump();
  }
  if (*type != a->arch) take_sfa_settings(config, where, values);
  std::string yaml;
  for (const auto& [key, value] : values) yaml += (yaml.empty() ? "{" : ", ") + key + ": " + value;
  std::vector<std::string> all = overrides;
  const auto positions = values.find("model.max_position_embeddings");
  if (positions != values.end()) {
    const double n = json::parse(positions->second).get<double>();
    if (n > static_cast<double>(kSequence)) yaml += fmt::format(", data.seq_len: {}", kSequence);
  }
  return parse_config(yaml + "}", where, all);
}

bool is_plain(const ModelConfig& model) {
  const AttentionConfig& a = model.attention;
  return a.type == "dense" && a.window == 0 && a.score_scale == 0 && model.rope_projection == "none";
}

ordered_json config_to_hf(const Config& config, const std::string& dtype) {
  const ModelConfig& m = config.model;
  const Architecture* a = find_architecture(m.arch);
  require(a != nullptr, "internal error: no Hugging Face name of the architecture '{}'", m.arch);
  require(m.arch != "gpt2" || m.num_key_value_heads == m.num_attention_heads,
          "GPT-2 in transformers has a key and value head for each query head; this model has {} of them for {} query "
          "heads and can't be exported",
          m.num_key_value_heads, m.num_attention_heads);
  require(m.qk_head_dim == m.head_dim,
          "models in transformers have queries and keys as wide as values; this one has attention.qk_head_dim {} and "
          "values of {}, and can't be exported",
          m.qk_head_dim, m.head_dim);
  const std::map<std::string, json> values = values_of(config);
  ordered_json out;
  out["architectures"] = {is_plain(m) ? a->hf_class : a->sfa_class};
  out["model_type"] = is_plain(m) ? std::string(a->arch) : std::string("sfa_") + a->arch;
  if (!is_plain(m))
    out["auto_map"] = {{"AutoConfig", std::string("modeling_sfa.") + a->sfa_config},
                       {"AutoModelForCausalLM", std::string("modeling_sfa.") + a->sfa_class}};
  out["torch_dtype"] = torch_name(dtype);
  for (const Key& key : a->keys) out[key.theirs] = value_of(values, key.ours);
  for (const Fixed& option : a->fixed)
    if (option.written) out[option.key] = option.values.front();
  if (!is_plain(m)) {
    ordered_json& sfa = out["sfa"];
    // Keys of every type are written, those that came later only where they say something.
    const auto written = [&](std::string_view key) {
      if (key == "gate") return m.attention.gate != "none";
      if (key == "score_scale") return m.attention.score_scale > 0;
      if (key == "k_by_layer") return !m.k_by_layer.empty();
      return m.attention.type == "sfa" || key == "type" || key == "window" || key == "rope_projection";
    };
    for (const char* key : kSfaKeys) {
      const auto it = values.find(std::string("model.attention.") + key);
      if (it != values.end() && written(key)) sfa[key] = it->second;
    }
  }
  return out;
}

}  // namespace sfa::hf
