// Log-likelihoods of continuations after contexts, as lm-evaluation-harness defines them: context and continuation are
// encoded as one string, whose tokens behind the context's own number are the continuation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/model.h"
#include "tokenizer/tokenizer.h"

namespace sfa {

struct ScoreRequest {
  std::vector<std::int32_t> context;       // at least one token
  std::vector<std::int32_t> continuation;  // may be empty: log-likelihood 0
};

/// White space at the end of the context goes to the continuation; an empty context is the end-of-text token.
ScoreRequest encode_pair(const Tokenizer& tokenizer, const std::string& context, const std::string& continuation);

struct Score {
  double log_likelihood = 0;  // nats, summed over the continuation
  bool greedy = true;         // every token of it is the likeliest, the lowest among equals
  bool truncated = false;     // the beginning of the context was cut off: the model has fewer positions
};

struct ScoreOptions {
  std::int64_t batch_tokens = 0;  // positions at a time, padding included; 0 = 4096 on the CPU, 65536 on a GPU
  bool show_progress = false;
};

/// One score a request, in their order. Requests run side by side, longest first, filled up on the right. Throws Error
/// when a continuation is longer than the model's positions.
std::vector<Score> score(Context& ctx, Model& model, const std::vector<ScoreRequest>& requests,
                         const ScoreOptions& options);

}  // namespace sfa
