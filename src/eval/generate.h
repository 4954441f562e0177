// Text generation: prompt in, one token at a time out, keys and values kept in caches.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "models/model.h"

namespace sfa {

struct GenerateOptions {
  std::vector<std::int32_t> prompt;  // at least one token
  std::int64_t max_tokens = 100;
  double temperature = 1.0;     // 0 = the likeliest token
  std::int64_t top_k = 0;       // 0 = the whole vocabulary
  std::uint64_t seed = 1;       // token i is drawn with the random number (seed, sampling, i)
  std::int32_t end_token = -1;  // stops after it; -1 = never
};

/// Calls `emit` with every new token; it returns false to stop. Returns the number of new tokens. When the model's
/// positions are used up the newest half of the text is fed again into fresh caches, so that any length can be
/// generated.
std::int64_t generate(Context& ctx, Model& model, const GenerateOptions& options,
                      const std::function<bool(std::int32_t)>& emit);

/// Draws from logits [V] by temperature and top-k, with `uniform` in (0, 1). Ties in top-k go to the lowest token.
std::int32_t sample_token(const std::vector<float>& logits, double temperature, std::int64_t top_k, double uniform);

}  // namespace sfa
