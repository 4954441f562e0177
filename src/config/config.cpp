// YAML -> flat map of dotted keys -> typed fields, and back.
#include "config/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <sstream>

#include "optim/guard.h"

namespace sfa {
namespace {

struct Leaf {
  std::string text;   // the scalar as written
  std::string where;  // "configs/x.yaml:12" or "command line"
  bool used = false;
  bool list = false;  // [a, b, ...]; text holds the parts with commas between them
};
using Leaves = std::map<std::string, Leaf>;
constexpr const char* kOverride = "command line";

// Aliases may lead back to their own anchor, or double at every level: a configuration is neither deep nor long.
constexpr int kMostLevels = 8, kMostNodes = 10'000;
constexpr std::size_t kMostValues = 1000;  // of a list

struct Source {
  std::string name;
  bool lines;    // say the line
  bool replace;  // an override: the last value counts
  int nodes = 0;
};

void flatten(const YAML::Node& node, const std::string& prefix, int level, Source& source, Leaves& out) {
  const std::string where = source.lines ? fmt::format("{}:{}", source.name, node.Mark().line + 1) : source.name;
  require(level <= kMostLevels, "{}: keys lie more than {} levels deep", where, kMostLevels);
  require(++source.nodes <= kMostNodes, "{}: there are more than {} entries", where, kMostNodes);
  if (node.IsMap()) {
    for (const auto& entry : node) {
      require(entry.first.IsScalar(), "{}: a key must be a plain word", where);
      flatten(entry.second, prefix + (prefix.empty() ? "" : ".") + entry.first.Scalar(), level + 1, source, out);
    }
    return;
  }
  require(!prefix.empty(), "{}: a configuration is a list of `key: value` lines", where);
  require(source.replace || !out.contains(prefix), "{}: {} is given twice", where, prefix);
  if (node.IsSequence()) {
    require(node.size() <= kMostValues, "{}: {}: a list of {} values is too long", where, prefix, node.size());
    std::vector<std::string> parts;
    for (const auto& part : node) {
      require(part.IsScalar(), "{}: {}: a list of plain values is expected", where, prefix);
      parts.push_back(part.Scalar());
    }
    out[prefix] = {fmt::format("{}", fmt::join(parts, ",")), where, false, true};
    return;
  }
  out[prefix] = {node.IsNull() ? "" : node.Scalar(), where, false, false};
}

YAML::Node load_yaml(const std::string& text, const std::string& source) {
  try {
    return YAML::Load(text);
  } catch (const YAML::Exception& e) {
    fail("{}:{}: not valid YAML: {}", source, e.mark.line + 1, e.msg);
  }
}

std::string last_part(const std::string& path) {
  return path.substr(path.rfind('.') + 1);
}

// Sets fields from leaves.
class Reader final : public ConfigVisitor {
 public:
  explicit Reader(Leaves& leaves) : leaves_(leaves) {}

  void key(const KeyInfo& info, std::string& value) override {
    Leaf* leaf = find(info);
    if (!leaf) return;
    const bool known =
        info.choices.empty() || std::find(info.choices.begin(), info.choices.end(), leaf->text) != info.choices.end();
    require(known, "{}: {}: '{}' is not one of {}", leaf->where, info.path, leaf->text, fmt::join(info.choices, ", "));
    value = leaf->text;
  }
  void key(const KeyInfo& info, std::int64_t& value) override {
    Leaf* leaf = find(info);
    if (!leaf) return;
    value = whole_number(leaf->text, *leaf, info);
  }
  void key(const KeyInfo& info, double& value) override {
    Leaf* leaf = find(info);
    if (!leaf) return;
    double parsed = 0;
    require(number(leaf->text, parsed), "{}: {}: a number is expected, got '{}'", leaf->where, info.path, leaf->text);
    value = parsed;
  }
  void key(const KeyInfo& info, bool& value) override {
    Leaf* leaf = find(info);
    if (!leaf) return;
    require(leaf->text == "true" || leaf->text == "false", "{}: {}: true or false is expected, got '{}'", leaf->where,
            info.path, leaf->text);
    value = leaf->text == "true";
  }

  void key(const KeyInfo& info, StepRange& value) override {
    Leaf* leaf = find(info, true);
    if (!leaf) return;
    value = {};
    if (leaf->list && leaf->text.empty()) return;
    const std::size_t comma = leaf->text.find(',');
    double first = 0, last = 0;
    require(leaf->list && comma != std::string::npos && number(leaf->text.substr(0, comma), first) &&
                number(leaf->text.substr(comma + 1), last) && first == std::floor(first) && last == std::floor(last) &&
                1 <= first && first <= last && last < 9e15,
            "{}: {}: two steps [first, last] are expected, 1 <= first <= last, got '{}'", leaf->where, info.path,
            leaf->text);
    value = {static_cast<std::int64_t>(first), static_cast<std::int64_t>(last)};
  }

  void key(const KeyInfo& info, std::vector<std::int64_t>& value) override {
    Leaf* leaf = find(info, true);
    if (!leaf) return;
    require(leaf->list, "{}: {}: a list of whole numbers is expected, got '{}'", leaf->where, info.path, leaf->text);
    value.clear();
    std::stringstream parts(leaf->text);
    for (std::string part; std::getline(parts, part, ',');) value.push_back(whole_number(part, *leaf, info));
  }

  /// A key that was given and that only another architecture has is an error.
  void refuse_foreign(const std::string& arch) const {
    for (const auto& [path, owner, where] : owned_)
      require(owner == arch, "{}: {}: {} has no such key, only {} has it", where, path, arch, owner);
  }

 private:
  static std::int64_t whole_number(const std::string& s, const Leaf& leaf, const KeyInfo& info) {
    std::int64_t parsed = 0;
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), parsed);
    if (error == std::errc{} && end == s.data() + s.size()) return parsed;
    // 1e6 is a whole number too.
    double wide = 0;
    require(number(s, wide) && wide == std::floor(wide) && std::fabs(wide) < 9e15,
            "{}: {}: a whole number is expected, got '{}'", leaf.where, info.path, s);
    return static_cast<std::int64_t>(wide);
  }
  static bool number(const std::string& s, double& value) {
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
    return error == std::errc{} && end == s.data() + s.size() && std::isfinite(value);
  }

  // A key goes by its path, or by an alias in its own section or, as nanoGPT writes it, at the top.
  Leaf* find(const KeyInfo& info, bool may_be_list = false) {
    Leaf* found = nullptr;
    const auto look = [&](const std::string& name) {
      const auto it = leaves_.find(name);
      if (it == leaves_.end() || it->second.used) return;
      require(found == nullptr, "{}: {} is another name of {}, which is given too", it->second.where, name, info.path);
      it->second.used = true;
      found = &it->second;
    };
    look(info.path);
    const std::size_t dot = info.path.rfind('.');
    for (const std::string& alias : info.aliases) {
      if (dot != std::string::npos) look(info.path.substr(0, dot + 1) + alias);
      look(alias);
    }
    require(found == nullptr || may_be_list || !found->list, "{}: {}: a single value is expected, not a list",
            found == nullptr ? "" : found->where, info.path);
    if (found != nullptr && !info.arch.empty()) owned_.push_back({info.path, info.arch, found->where});
    return found;
  }

  struct Owned {
    std::string path, arch, where;
  };
  Leaves& leaves_;
  std::vector<Owned> owned_;  // keys given that one architecture alone has
};

// Collects names, or prints values.
class Lister final : public ConfigVisitor {
 public:
  struct Entry {
    KeyInfo info;
    std::string value;
  };
  std::vector<Entry> entries;

  void key(const KeyInfo& info, std::string& value) override { entries.push_back({info, quoted(value)}); }
  void key(const KeyInfo& info, std::int64_t& value) override { entries.push_back({info, fmt::format("{}", value)}); }
  void key(const KeyInfo& info, double& value) override { entries.push_back({info, fmt::format("{}", value)}); }
  void key(const KeyInfo& info, bool& value) override { entries.push_back({info, value ? "true" : "false"}); }
  void key(const KeyInfo& info, StepRange& value) override {
    entries.push_back({info, value.last == 0 ? "[]" : fmt::format("[{}, {}]", value.first, value.last)});
  }
  void key(const KeyInfo& info, std::vector<std::int64_t>& value) override {
    entries.push_back({info, fmt::format("[{}]", fmt::join(value, ", "))});
  }

 private:
  static std::string quoted(const std::string& s) {
    const bool null = s == "null" || s == "Null" || s == "NULL";  // would be read as an empty value
    const bool plain = !s.empty() && !null && std::all_of(s.begin(), s.end(), [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '/' || c == '.' || c == '-';
    });
    if (plain) return s;
    const bool one_line = std::all_of(s.begin(), s.end(), [](char c) { return static_cast<unsigned char>(c) >= ' '; });
    if (one_line) {
      std::string out = "'";
      for (char c : s) out += c == '\'' ? std::string("''") : std::string(1, c);
      return out + "'";
    }
    // Line ends would be folded in single quotes; YAML's double quotes keep every character.
    std::string out = "\"";
    for (char c : s) {
      if (c == '"' || c == '\\')
        out += {'\\', c};
      else
        out += static_cast<unsigned char>(c) >= ' ' ? std::string(1, c) : fmt::format("\\x{:02x}", c);
    }
    return out + "\"";
  }
};

std::vector<Lister::Entry> list_keys(Config config) {
  Lister lister;
  visit_config(config, lister);
  return lister.entries;
}

std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string nearest_key(const std::string& unknown) {
  std::string best;
  double least = 1e9;
  const std::string section = unknown.substr(0, unknown.find('.'));
  for (const auto& entry : list_keys({})) {
    const std::string& path = entry.info.path;
    const bool same_section = path.substr(0, path.find('.')) == section;
    // The full path counts, and so does the last word alone, by any of its names: `train.learning_rat`, `lr`.
    double distance = static_cast<double>(edit_distance(unknown, path));
    std::vector<std::string> names = entry.info.aliases;
    names.push_back(last_part(path));
    for (const std::string& name : names)
      distance = std::min(
          distance, static_cast<double>(edit_distance(last_part(unknown), name)) + 0.4 + (same_section ? 0 : 0.3));
    if (distance < least) {
      least = distance;
      best = path;
    }
  }
  return best;
}

void apply_override(const std::string& text, Leaves& leaves) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    throw UsageError(
        fmt::format("'{}' is not an override; write key.path=value, for example train.max_steps=200", text));
  Source source{kOverride, false, true};
  flatten(load_yaml(text.substr(equals + 1), "override " + text), text.substr(0, equals), 0, source, leaves);
}

// A resolved configuration, as runs keep it, names k_q and k_k beside k. Where they say the same there, an override of
// k (`before`: what the file has) is meant for them too; one that nothing would follow is refused.
void follow_features(const std::string& before, Leaves& leaves) {
  const std::string key = "model.attention.k";
  const auto k = leaves.find(key);
  if (k == leaves.end() || k->second.where != kOverride) return;
  bool followed = k->second.text == "0";
  for (const std::string& side : {key + "_q", key + "_k"}) {
    auto it = leaves.find(side);
    if (it != leaves.end() && it->second.where != kOverride && it->second.text == before) {
      leaves.erase(it);
      it = leaves.end();
    }
    followed |= it == leaves.end() || it->second.text == "0" || it->second.text == k->second.text;
  }
  require(followed, "{}: {}: neither queries nor keys would keep {}, since k_q and k_k are set too; change those",
          kOverride, key, k->second.text);
}

// A count whose products with a few others stay in range.
void check_count(std::int64_t value, const char* key) {
  constexpr std::int64_t kMost = 1 << 24;
  require(value >= 1 && value <= kMost, "{}: must be from 1 to {}, got {}", key, kMost, value);
}
void check_positive(double value, const char* key) {
  require(value > 0, "{}: must be positive, got {}", key, value);
}
void check_not_negative(double value, const char* key) {
  require(value >= 0, "{}: must not be negative, got {}", key, value);
}

void validate_schedule(TrainConfig& t) {
  check_positive(static_cast<double>(t.max_steps), "train.max_steps");
  check_positive(t.lr, "train.lr");
  check_not_negative(t.min_lr, "train.min_lr");
  require(t.min_lr <= t.lr, "train.min_lr: {} is above train.lr = {}", t.min_lr, t.lr);
  check_not_negative(static_cast<double>(t.warmup_steps), "train.warmup_steps");
  check_not_negative(static_cast<double>(t.decay_steps), "train.decay_steps");
  if (t.schedule != "wsd") return;
  if (t.decay_steps == 0) t.decay_steps = std::max<std::int64_t>(1, t.max_steps / 10);
  require(t.warmup_steps + t.decay_steps <= t.max_steps,
          "train.decay_steps: {} steps of decay and {} of train.warmup_steps are more than train.max_steps = {}",
          t.decay_steps, t.warmup_steps, t.max_steps);
}

void validate_guard(const GuardConfig& g) {
  check_not_negative(g.loss_threshold, "train.guard.loss_threshold");
  check_not_negative(g.grad_norm_threshold, "train.guard.grad_norm_threshold");
  require(g.spike == "off" || g.loss_threshold > 0 || g.grad_norm_threshold > 0,
          "train.guard.spike: {} has nothing to look at; loss_threshold and grad_norm_threshold are both 0", g.spike);
  require(g.window >= 2 && g.window <= kGuardWindow, "train.guard.window: must be 2 to {} steps, got {}", kGuardWindow,
          g.window);
  require(g.max_skips >= 0 && g.max_skips <= 1000000, "train.guard.max_skips: must be 0 to 1000000, got {}",
          g.max_skips);
  check_not_negative(static_cast<double>(g.max_rollbacks), "train.guard.max_rollbacks");
}

void validate_precision(const TrainConfig& t) {
  require(t.dtype != "fp32" || t.grad_dtype == "fp32",
          "train.grad_dtype: {} gradients need train.dtype: bf16; products of fp32 weights have fp32 results",
          t.grad_dtype);
  require(t.dtype != "fp32" || !t.stochastic_rounding,
          "train.stochastic_rounding: fp32 weights are not rounded; it needs train.dtype: bf16");
  require(
      t.master_weights == "fp32" || t.stochastic_rounding,
      "train.master_weights: none needs train.stochastic_rounding: true; rounding to nearest would lose every update "
      "below half a bf16 step");
  require(t.ema_decay >= 0 && t.ema_decay < 1, "train.ema_decay: must be at least 0 and below 1, got {}", t.ema_decay);
  require(t.ema_decay > 0 || !t.ema_validation, "train.ema_validation: there is no average; set train.ema_decay");
}

void validate_train(TrainConfig& t) {
  validate_schedule(t);
  validate_guard(t.guard);
  validate_precision(t);
  check_not_negative(t.weight_decay, "train.weight_decay");
  for (const auto& [beta, key] : {std::pair{t.beta1, "train.beta1"}, std::pair{t.beta2, "train.beta2"}})
    require(beta >= 0 && beta < 1, "{}: must be at least 0 and below 1, got {}", key, beta);
  check_positive(t.epsilon, "train.epsilon");
  check_not_negative(t.grad_clip, "train.grad_clip");
  check_not_negative(static_cast<double>(t.eval_every), "train.eval_every");
  check_positive(static_cast<double>(t.log_every), "train.log_every");
}

void validate_context_parallel(const Config& c) {
  const std::int64_t chunks = 2 * c.dist.context_parallel;
  require(c.data.seq_len % chunks == 0,
          "dist.context_parallel: data.seq_len = {} tokens can't be cut into {} equal chunks, two a rank",
          c.data.seq_len, chunks);
  // Each chunk's kept features are read where they lie, in vectors.
  require(
      c.model.attention.type != "sfa" || c.device == "cpu" || c.data.seq_len / chunks % 8 == 0,
      "dist.context_parallel: sfa on GPUs needs chunks of a multiple of 8 tokens; data.seq_len = {} in {} chunks, two "
      "a rank, is {} each",
      c.data.seq_len, chunks, c.data.seq_len / chunks);
  require(c.model.attention.distill_lambda == 0,
          "dist.context_parallel: the dense teacher of train.distill.lambda does not see the keys of other ranks");
  require(
      !c.train.noise_scale,
      "dist.context_parallel: train.noise_scale compares gradients of whole sequences, a rank has those of its part");
}

void validate(Config& c) {
  require(!c.output_dir.empty(), "output_dir: is not set; it names the folder of the run");
  check_not_negative(static_cast<double>(c.seed), "seed");
  c.model.resolve();
  DataConfig& d = c.data;
  if (d.seq_len == 0) d.seq_len = c.model.max_position_embeddings;
  check_count(d.seq_len, "data.seq_len");
  require(d.seq_len <= c.model.max_position_embeddings,
          "data.seq_len: {} tokens are longer than the model's {} positions (model.max_position_embeddings)", d.seq_len,
          c.model.max_position_embeddings);
  check_count(d.batch_size, "data.batch_size");
  if (d.micro_batch_size == 0) d.micro_batch_size = d.batch_size;
  check_count(d.micro_batch_size, "data.micro_batch_size");
  require(d.batch_size % d.micro_batch_size == 0, "data.micro_batch_size: {} does not divide data.batch_size = {}",
          d.micro_batch_size, d.batch_size);
  validate_train(c.train);
  check_not_negative(c.model.attention.distill_lambda, "train.distill.lambda");
  require(c.model.attention.distill_lambda == 0 || c.model.attention.type == "sfa",
          "train.distill.lambda: sparse attention is drawn to dense attention; model.attention.type is '{}'",
          c.model.attention.type);
  check_count(c.train.distill_every, "train.distill.every");
  require(c.train.k_anneal_until > 0 && c.train.k_anneal_until <= 1,
          "train.k_anneal.until: must be above 0 and at most 1, got {}", c.train.k_anneal_until);
  require(!c.train.noise_scale || d.batch_size >= 2 * d.micro_batch_size,
          "train.noise_scale: compares the gradient of one micro-step with that of all, so data.micro_batch_size = {} "
          "must be at most half of data.batch_size = {}",
          d.micro_batch_size, d.batch_size);
  require(!c.train.noise_scale || c.train.loss_mask == "none",
          "train.noise_scale: measures batches of tokens that all count, which train.loss_mask: {} does not leave",
          c.train.loss_mask);
  check_not_negative(static_cast<double>(c.checkpoint.every), "checkpoint.every");
  check_not_negative(static_cast<double>(c.checkpoint.keep_last), "checkpoint.keep_last");
  check_not_negative(static_cast<double>(c.checkpoint.keep_every), "checkpoint.keep_every");
  require(c.dist.zero >= 0 && c.dist.zero <= 2, "dist.zero: {} is none of 0, 1 and 2", c.dist.zero);
  check_count(c.dist.context_parallel, "dist.context_parallel");
  if (c.dist.context_parallel > 1) validate_context_parallel(c);
  check_count(c.dist.bucket_mb, "dist.bucket_mb");
  check_positive(c.dist.timeout_s, "dist.timeout_s");
}

Config build(Leaves& leaves) {
  Config config;
  Reader reader(leaves);
  visit_config(config, reader);
  for (const auto& [name, leaf] : leaves)
    require(leaf.used, "{}: unknown key '{}'; the nearest known one is '{}'", leaf.where, name, nearest_key(name));
  reader.refuse_foreign(config.model.arch);
  validate(config);
  return config;
}

}  // namespace

Config parse_config(const std::string& text, const std::string& source, const std::vector<std::string>& overrides) {
  Leaves leaves;
  const YAML::Node root = load_yaml(text, source);
  Source from{source, true, false};
  if (!root.IsNull()) flatten(root, "", 0, from, leaves);
  const auto k = leaves.find("model.attention.k");
  const std::string k_of_file = k == leaves.end() ? "" : k->second.text;
  for (const std::string& o : overrides) apply_override(o, leaves);
  follow_features(k_of_file, leaves);
  return build(leaves);
}

Config load_config(const std::string& file, const std::vector<std::string>& overrides) {
  if (file.empty()) return parse_config("", "", overrides);
  require(!std::filesystem::is_directory(file), "{}: is a folder; a configuration is a YAML file", file);
  std::ifstream in(file);
  require(in.good(), "{}: the configuration can't be read; is the path right?", file);
  std::stringstream text;
  text << in.rdbuf();
  return parse_config(text.str(), file, overrides);
}

std::string dump_config(const Config& config) {
  std::string out, section;
  for (const auto& [info, value] : list_keys(config)) {
    if (!info.arch.empty() && info.arch != config.model.arch) continue;
    std::vector<std::string> parts;
    std::stringstream path(info.path);
    for (std::string part; std::getline(path, part, '.');) parts.push_back(part);
    std::string own;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      own += (own.empty() ? "" : ".") + parts[i];
      if (!(section + ".").starts_with(own + ".")) out += std::string(2 * i, ' ') + parts[i] + ":\n";
    }
    section = own;
    out += std::string(2 * (parts.size() - 1), ' ') + parts.back() + ": " + value + "\n";
  }
  return out;
}

std::string config_reference() {
  std::string out = "| key | default | meaning |\n|---|---|---|\n";
  for (const auto& [info, value] : list_keys({})) {
    std::string meaning = info.meaning;
    if (!info.choices.empty()) meaning += fmt::format(" (`{}`)", fmt::join(info.choices, "`, `"));
    if (!info.aliases.empty()) meaning += fmt::format("; also `{}`", fmt::join(info.aliases, "`, `"));
    out += fmt::format("| `{}` | `{}` | {} |\n", info.path, value, meaning);
  }
  return out;
}

}  // namespace sfa
