// Perplexity: the mean loss over a whole split in non-overlapping windows, each token but a file's first predicted
// once.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "data/loader.h"
#include "models/model.h"

namespace sfa {

/// What one document adds: its predicted tokens (each but its first; a file's first may be cut off in front) and their
/// losses.
struct DocumentLoss {
  std::int64_t tokens = 0;
  double nats = 0;
};

struct PerplexityResult {
  double loss = 0;        // mean negative log-likelihood of a token (nats)
  double perplexity = 0;  // exp(loss)
  double bits_per_byte =
      0;  // total nats / ln 2 / bytes of text; 0 when the data does not say how many bytes its tokens stand for
  std::int64_t tokens = 0;  // predicted tokens
  /// In the data's order; an end-of-text id that is read begins the next one, one that is predicted belongs to the
  /// last.
  std::vector<DocumentLoss> documents;
};

/// Uploads a host batch of the planned shape and gives the model's input.
using Upload = ModelInput (*)(void* owner, Context& ctx, const Batch& batch);

struct PerplexityRun {
  Context& ctx;
  Model& model;
  ModelArenas& arenas;
  Tensor losses;  // [B*T] f32 on the device
  Upload upload;
  void* owner;  // passed to upload
  /// Several ranks, each with its share of the batches: adds these sums up over ranks, in place. Empty = one rank.
  std::function<void(double& loss, std::int64_t& tokens, std::int64_t& bytes)> sum_over_ranks = {};
};
PerplexityResult evaluate_perplexity(const PerplexityRun& run, ValidationSet& data);

}  // namespace sfa
