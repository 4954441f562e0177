// A trained model taken from a checkpoint or a Hugging Face folder, ready to be evaluated: configuration, weights, and
// the device it runs on.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "config/config.h"
#include "core/arena.h"
#include "hf/model_source.h"
#include "models/model.h"

namespace sfa {

struct LoadOptions {
  std::string path;  // a checkpoint, a run folder (its newest checkpoint), or a Hugging Face folder
  std::string device = "auto";
  std::string dtype = "auto";          // auto | fp32 | bf16, as train.dtype
  std::string kv_cache = "full";       // int8: keys and values are read as a cache in 8 bits holds them
  bool average = false;                // the running average of the weights (train.ema_decay)
  std::vector<std::string> overrides;  // of the saved configuration, for example model.attention.impl=reference
};

class LoadedModel {
 public:
  explicit LoadedModel(const LoadOptions& options);

  [[nodiscard]] const hf::ModelSource& source() const { return source_; }
  [[nodiscard]] const std::filesystem::path& folder() const { return source_.folder(); }
  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] const nlohmann::json& state() const { return source_.state(); }
  [[nodiscard]] Context& context() { return *context_; }
  [[nodiscard]] Model& model() { return *model_; }

 private:
  hf::ModelSource source_;
  Config config_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Arena> weights_;
};

/// `auto` -> the GPU when one can be used. Throws Error when a GPU is demanded and there is none.
Device choose_device(const std::string& wanted);
/// True when weights and activations are to be rounded to bf16.
bool wants_bf16(const std::string& dtype, Device device);

}  // namespace sfa
