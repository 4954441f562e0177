// init_from: the weights that a new run begins with, taken from a checkpoint or a Hugging Face folder. Moments, step
// and place in the data are those of a new run.
#pragma once

#include <memory>
#include <string>

#include "config/config.h"
#include "data/loader.h"
#include "hf/model_source.h"

namespace sfa {

class StartingWeights {
 public:
  /// Opens what config.init_from names; nothing when it is empty. A run that will be resumed no longer needs that: then
  /// it is the run's own checkpoint, for the vocabulary.
  explicit StartingWeights(const Config& config);

  [[nodiscard]] bool given() const { return source_ != nullptr; }
  /// Fills config.model.vocab_size where it is 0: from the weights, else from the data. Throws Error when the data has
  /// ids that the model has not, or is so much smaller that it must be another tokenizer's.
  [[nodiscard]] Config with_vocabulary(Config config, const ShardSet& shards) const;
  /// Throws Error when the weights are those of another architecture or vocabulary.
  void check(const Config& config, const ParameterList& list, const ShardSet& shards);
  /// Reads them into a flat f32 buffer in host memory that holds the seeded initial weights. A map that starts as the
  /// identity and that the weights lack stays.
  void read(const ParameterList& list, const Tensor& flat);

 private:
  std::string path_;
  std::unique_ptr<hf::ModelSource> source_;
};

}  // namespace sfa
