// Where a trained model comes from: a checkpoint of ours (or a run folder: its newest), or a Hugging Face folder. Both
// give a configuration, a state, and the values of each parameter.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "config/config.h"
#include "core/context.h"
#include "data/loader.h"
#include "hf/safetensors.h"
#include "hf/weights.h"
#include "models/model.h"
#include "tokenizer/tokenizer.h"

namespace sfa::hf {

class ModelSource {
 public:
  /// A folder with a config.json (or a *.safetensors file beside one) is a Hugging Face checkpoint, everything else is
  /// looked up as a checkpoint of ours. Throws Error with one sentence when it is neither.
  explicit ModelSource(const std::filesystem::path& path);

  [[nodiscard]] bool from_hugging_face() const { return tensors_ != nullptr; }
  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
  /// As saved, with overrides.
  [[nodiscard]] Config config(const std::vector<std::string>& overrides) const;
  /// As a checkpoint has it: step, tokenizer and its hash, ... Of a Hugging Face folder: step 0, its tokenizer when one
  /// can be read, and hf_dtype.
  [[nodiscard]] const nlohmann::json& state() const { return state_; }
  /// Where the tokenizer may be found, best first.
  [[nodiscard]] std::vector<std::string> tokenizer_places() const;
  /// Ids at which text ends: the tokenizer's, and those that a Hugging Face folder names (a chat model ends its turn
  /// with another one).
  [[nodiscard]] std::set<std::uint32_t> end_ids(const Tokenizer& tokenizer) const;
  /// Throws Error unless the ids of the data are those of the model's tokenizer (or nothing is known of that). `where`
  /// names the data.
  void require_tokenizer_of(const ShardSet& data, const std::string& where) const;
  /// config.json; null of a checkpoint of ours.
  [[nodiscard]] const nlohmann::json& hf_config() const { return hf_config_; }

  /// True when the running average of the weights was saved.
  [[nodiscard]] bool has_average(const ParameterList& list) const;
  /// Throws Error unless every parameter of the list is there with its shape, except for those that `missing` allows.
  void check(const ParameterList& list, bool average, Missing missing = Missing::refuse);
  /// Fills `out` with a parameter that check() has passed; false, with `out` as it was, when it lacks it.
  bool values(const Parameter& p, bool average, std::vector<float>& out);
  /// check(), then reads every parameter into a flat buffer of f32 or bf16 on any device.
  void read(Context& ctx, const ParameterList& list, bool average, const Tensor& flat,
            Missing missing = Missing::refuse);

 private:
  void open_hugging_face(const std::filesystem::path& path);

  std::filesystem::path folder_;
  nlohmann::json state_, hf_config_;
  std::unique_ptr<CheckpointReader> checkpoint_;
  std::unique_ptr<SafetensorsSet> tensors_;
};

/// True when both configurations describe the same parameters with the same meaning but for the attention's selection,
/// so that weights of one can start the other; otherwise Error: "{where} has model.x 3, this configuration has 4".
void require_same_architecture(const Config& theirs, const Config& ours, const std::string& where);

}  // namespace sfa::hf
