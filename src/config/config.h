// A run, described by one YAML file and `key.path=value` overrides, as typed and validated structs.
//
// One function, visit_config, names every key once, with its meaning, unit and choices; parsing, overriding, printing,
// the reference in docs/configuration.md and the search for the nearest name all walk it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/model.h"

namespace sfa {

struct DataConfig {
  std::string train;                  // token file or glob of shards
  std::string val;                    // empty = the tail of train
  std::int64_t seq_len = 0;           // 0 = model.max_position_embeddings
  std::int64_t batch_size = 8;        // sequences an optimizer step, over all ranks
  std::int64_t micro_batch_size = 0;  // sequences a rank and forward pass; 0 = batch_size / ranks
  bool shuffle = true;
  bool document_mask = false;
};

/// Steps first..last, counted from 1; none when last is 0.
struct StepRange {
  std::int64_t first = 0, last = 0;
  [[nodiscard]] bool contains(std::int64_t step) const { return last > 0 && step >= first && step <= last; }
  bool operator==(const StepRange&) const = default;
};

/// What is done about updates that would harm (optim/guard.h).
struct GuardConfig {
  std::string nonfinite = "skip";
  std::string spike = "off";
  double loss_threshold = 6, grad_norm_threshold = 10;
  std::int64_t window = 128;
  std::int64_t max_skips = 10;
  std::int64_t max_rollbacks = 3;
};

struct TrainConfig {
  std::int64_t max_steps = 1000;
  double lr = 6e-4;
  double min_lr = 0;
  std::int64_t warmup_steps = 0;
  std::string schedule = "cosine";
  std::int64_t decay_steps = 0;        // wsd; 0 = a tenth of max_steps
  std::string decay_shape = "linear";  // wsd
  double weight_decay = 0.1;
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double grad_clip = 1.0;
  std::string dtype = "auto";
  std::string grad_dtype = "fp32";
  std::string master_weights = "fp32";
  bool stochastic_rounding = false;
  double ema_decay = 0;
  bool ema_validation = false;
  bool noise_scale = false;
  GuardConfig guard;
  std::int64_t eval_every = 250;
  std::int64_t log_every = 10;
  StepRange profile_steps;
  bool cuda_graphs = true;
  std::int64_t distill_every = 1;  // train.distill.every; lambda is in model.attention
  std::string loss_mask = "none";
  double k_anneal_until = 0.5;  // train.k_anneal.until, share of max_steps; from is in model.attention
  bool tensorboard = false;
};

struct CheckpointConfig {
  std::int64_t every = 500;
  std::int64_t keep_last = 2;
  std::int64_t keep_every = 0;
  bool background = true;
};

struct DistConfig {
  std::int64_t zero = 0;
  std::int64_t context_parallel = 1;
  std::string reduce_dtype = "auto";
  std::int64_t bucket_mb = 25;
  double timeout_s = 45;
};

struct Config {
  std::string output_dir;
  std::string device = "auto";
  std::int64_t seed = 1;
  std::string resume = "never";
  std::string init_from;
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  CheckpointConfig checkpoint;
  DistConfig dist;
};

/// What the code knows of one key.
struct KeyInfo {
  std::string path;                  // "train.lr"
  std::string meaning;               // one phrase, unit included
  std::vector<std::string> choices;  // allowed values of a string key; empty = any
  std::vector<std::string> aliases;  // other names of the last part, as nanoGPT has them
  std::string arch = "";             // the one architecture that has it; empty = all
};

class ConfigVisitor {
 public:
  virtual ~ConfigVisitor() = default;
  virtual void key(const KeyInfo& info, std::string& value) = 0;
  virtual void key(const KeyInfo& info, std::int64_t& value) = 0;
  virtual void key(const KeyInfo& info, double& value) = 0;
  virtual void key(const KeyInfo& info, bool& value) = 0;
  virtual void key(const KeyInfo& info, StepRange& value) = 0;  // [first, last], or [] for none
  virtual void key(const KeyInfo& info, std::vector<std::int64_t>& value) = 0;
};

void visit_config(Config& config, ConfigVisitor& visitor);

/// Reads `file` (empty = defaults alone), applies overrides in order, checks types, names and ranges. The result is
/// resolved except for what needs the data or the device. Throws Error with file, line and key.
Config load_config(const std::string& file, const std::vector<std::string>& overrides);
/// The same from YAML text; `source` names it in messages.
Config parse_config(const std::string& text, const std::string& source, const std::vector<std::string>& overrides);

/// Every key that the architecture has with its value, as YAML that load_config reads back to the same Config.
std::string dump_config(const Config& config);
/// The table of docs/configuration.md: key, default, meaning.
std::string config_reference();

}  // namespace sfa
