#include "hf/model_source.h"

#include <utility>

#include "checkpoint/model_checkpoint.h"
#include "core/error.h"
#include "core/log.h"
#include "hf/config_file.h"
#include "tokenizer/tokenizer.h"

namespace sfa::hf {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

bool is_hugging_face(const fs::path& path) {
  std::error_code error;
  if (path.extension() == ".safetensors") return true;
  return fs::exists(path / "config.json", error) || fs::exists(path / "model.safetensors", error) ||
         fs::exists(path / "model.safetensors.index.json", error);
}

std::string parameter_name(const Parameter& p, bool average) {
  return (average ? "ema/" : "param/") + p.name;
}

// The keys under model. that decide what a parameter means.
class ModelKeys final : public ConfigVisitor {
 public:
  std::vector<std::pair<std::string, std::string>> values;  // in the order of the reference
  void key(const KeyInfo& info, std::string& value) override { put(info, value); }
  void key(const KeyInfo& info, std::int64_t& value) override { put(info, fmt::format("{}", value)); }
  void key(const KeyInfo& info, double& value) override { put(info, fmt::format("{}", value)); }
  void key(const KeyInfo& info, bool& value) override { put(info, value ? "true" : "false"); }
  void key(const KeyInfo&, StepRange&) override {}
  void key(const KeyInfo&, std::vector<std::int64_t>&) override {}

 private:
  void put(const KeyInfo& info, std::string value) {
    const bool attention = info.path.starts_with("model.attention.") && info.path != "model.attention.qk_head_dim";
    if (info.path.starts_with("model.") && !attention && !info.path.ends_with("initializer_range"))
      values.emplace_back(info.path, std::move(value));
  }
};

std::vector<std::pair<std::string, std::string>> model_keys(Config config) {
  ModelKeys keys;
  visit_config(config, keys);
  return std::move(keys.values);
}

}  // namespace

ModelSource::ModelSource(const fs::path& path) {
  if (is_hugging_face(path)) {
    open_hugging_face(path);
    return;
  }
  folder_ = find_checkpoint(path);
  checkpoint_ = std::make_unique<CheckpointReader>(folder_);
  state_ = checkpoint_->state();
}

void ModelSource::open_hugging_face(const fs::path& path) {
  folder_ = path.extension() == ".safetensors" ? fs::path(folder_of(path.string())) : path;
  hf_config_ = read_json_file((folder_ / "config.json").string());
  tensors_ = std::make_unique<SafetensorsSet>(path);
  state_ = {{"step", 0}, {"tokenizer", folder_.string()}};
  if (const auto& all = tensors_->tensors(); !all.empty()) state_["hf_dtype"] = all.begin()->second.tensor->dtype;
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"})
    if (const auto it = hf_config_.find(key); it != hf_config_.end() && (it->is_number_unsigned() || it->is_array()))
      state_["hf_ids"][key] = *it;
  // What transformers' generate() looks at.
  const fs::path generation = folder_ / "generation_config.json";
  if (fs::exists(generation)) {
    const json named = read_json_file(generation.string());
    if (named.contains("eos_token_id")) state_["end_ids"] = named["eos_token_id"];
  }
  if (tokenizer_files_in(folder_.string()).empty()) return;
  try {
    state_["tokenizer_hash"] = load_tokenizer(folder_.string())->hash();
  } catch (const Error& error) {
    spdlog::warn("the tokenizer of {} can't be used: {}", folder_.string(), error.what());
  }
}

Config ModelSource::config(const std::vector<std::string>& overrides) const {
  if (tensors_) {
    Config config = config_from_hf(hf_config_, (folder_ / "config.json").string(), overrides);
    // Before a list of as many layers is made.
    require(std::cmp_less_equal(config.model.num_hidden_layers, tensors_->tensors().size()),
            "{}: the configuration has {} layers, the weights {} tensors altogether", folder_.string(),
            config.model.num_hidden_layers, tensors_->tensors().size());
    return config;
  }
  return parse_config(checkpoint_->config_yaml(), folder_.string(), overrides);
}

std::vector<std::string> ModelSource::tokenizer_places() const {
  if (tensors_) return {folder_.string()};
  const std::string name = state_.value("tokenizer", "bytes");
  if (name == "bytes") return {name};
  const fs::path kept = fs::absolute(folder_).lexically_normal().parent_path() / "tokenizer";
  return {(kept / fs::path(name).filename()).string(), kept.string(), name};
}

std::set<std::uint32_t> ModelSource::end_ids(const Tokenizer& tokenizer) const {
  std::set<std::uint32_t> ids{tokenizer.end_of_text()};
  const json named = state_.value("end_ids", json());
  for (const json& id : named.is_array() ? named : json::array({named}))
    if (id.is_number_unsigned()) ids.insert(id.get<std::uint32_t>());
  return ids;
}

void ModelSource::require_tokenizer_of(const ShardSet& data, const std::string& where) const {
  const std::string hash = state_.value("tokenizer_hash", "");
  if (hash.empty() || hash == data.tokenizer_hash()) return;
  const std::string difference =
      fmt::format("{}: was made with another tokenizer ({}) than the model's training data ({})", where,
                  data.tokenizer_name(), state_.value("tokenizer", "unknown"));
  // One tokenizer in two formats has two hashes.
  bool same = false;
  try {
    same = same_ids(*find_tokenizer(hash, tokenizer_places(), ""),
                    *find_tokenizer(data.tokenizer_hash(), data.tokenizer_places(), ""));
  } catch (const Error& error) {
    fail("{}; whether they are one tokenizer in two formats could not be seen: {}", difference, error.what());
  }
  require(same, "{}", difference);
}

bool ModelSource::has_average(const ParameterList& list) const {
  return checkpoint_ && checkpoint_->tensors().contains("ema/" + list.all().front().name);
}

void ModelSource::check(const ParameterList& list, bool average, Missing missing) {
  const std::string where = folder_.string();
  require(!average || has_average(list), "{}: has no average of the weights; a run keeps one with train.ema_decay",
          where);
  if (tensors_) return check_tensors(list, *tensors_, where, missing);
  for (const Parameter& p : list.all()) {
    const std::string name = parameter_name(p, average);
    const auto it = checkpoint_->tensors().find(name);
    if (it == checkpoint_->tensors().end() && missing == Missing::keep_identity && p.init == Init::identity) continue;
    require(it != checkpoint_->tensors().end(), "{}: the checkpoint has no tensor '{}'", where, name);
    require(it->second.shape == p.shape, "{}: the checkpoint's '{}' has shape [{}], the model's has [{}]", where, name,
            fmt::join(it->second.shape, ", "), fmt::join(p.shape, ", "));
    checkpoint_->expect({name, DType::f32, p.shape});
  }
}

bool ModelSource::values(const Parameter& p, bool average, std::vector<float>& out) {
  if (tensors_) return read_parameter(*tensors_, p, out);
  const std::string name = parameter_name(p, average);
  if (!checkpoint_->tensors().contains(name)) return false;
  out.resize(static_cast<std::size_t>(p.numel()));
  checkpoint_->read(name, 0, p.numel(), out.data());
  return true;
}

void ModelSource::read(Context& ctx, const ParameterList& list, bool average, const Tensor& flat, Missing missing) {
  check(list, average, missing);
  std::vector<float> host;
  for (std::size_t i = 0; i < list.all().size(); ++i)
    if (values(list.all()[i], average, host)) upload_values(ctx, host, list.view(flat, i));
}

void require_same_architecture(const Config& theirs, const Config& ours, const std::string& where) {
  const auto a = model_keys(theirs), b = model_keys(ours);
  const auto keep = [&](const char* key, const std::string& learnt, const std::string& our) {
    require(learnt == "none" || learnt == our,
            "{} has model.attention.{} {}, this configuration has {}; what was learnt there would be lost", where, key,
            learnt, our);
  };
  keep("rope_projection", theirs.model.rope_projection, ours.model.rope_projection);
  keep("gate", theirs.model.attention.gate, ours.model.attention.gate);
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    require(a[i].second == b[i].second, "{} has {} {}, this configuration has {}", where, a[i].first, a[i].second,
            b[i].second);
}

}  // namespace sfa::hf
