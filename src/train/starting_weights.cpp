#include "train/starting_weights.h"

#include "core/log.h"

namespace sfa {

// Published models round their vocabulary up: Qwen3 has 151,936 rows for 151,669 ids. Anything else is a mistake.
constexpr std::int64_t kMostUnusedIds = 1024, kRounding = 64;

StartingWeights::StartingWeights(const Config& config) : path_(config.init_from) {
  if (!path_.empty() && config.resume == "auto" && !list_checkpoints(config.output_dir).empty())
    path_ = config.output_dir;
  if (!path_.empty()) source_ = std::make_unique<hf::ModelSource>(path_);
}

Config StartingWeights::with_vocabulary(Config config, const ShardSet& shards) const {
  std::int64_t& ids = config.model.vocab_size;
  if (ids == 0 && source_) ids = source_->config({}).model.vocab_size;
  if (ids == 0) ids = shards.vocab_size();
  const std::int64_t unused = ids - shards.vocab_size();
  const bool rounded = source_ != nullptr || ids % kRounding == 0;
  require(unused == 0 || (unused > 0 && unused <= kMostUnusedIds && rounded),
          "model.vocab_size: {} differs from the vocabulary of {}, which has {} ids ({})", ids, shards.describe(),
          shards.vocab_size(), shards.tokenizer_name());
  return config;
}

void StartingWeights::check(const Config& config, const ParameterList& list, const ShardSet& shards) {
  if (!source_) return;
  hf::require_same_architecture(source_->config({}), config, "init_from: " + path_);
  source_->require_tokenizer_of(shards, shards.describe());
  source_->check(list, false, hf::Missing::keep_identity);
}

void StartingWeights::read(const ParameterList& list, const Tensor& flat) {
  if (!source_) return;
  Context host(Device::cpu);
  source_->read(host, list, false, flat, hf::Missing::keep_identity);
  spdlog::info("weights of {}", source_->folder().string());
}

}  // namespace sfa
