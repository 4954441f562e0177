// Generation over KV caches: what all models share. A model's feed() puts new tokens through the same block_forward
// that trains, with keys and values taken from caches, and gives the logits of the last one.
#pragma once

#include <memory>
#include <vector>

#include "models/model.h"

namespace sfa {

struct CachedGeneration final : Generation {
  explicit CachedGeneration(Device device) : memory(device), cache_arena("KV cache", device) {}
  ModelArenas memory;
  Arena cache_arena;
  std::vector<KvCache> caches;  // one a layer
  std::int64_t chunk = 0;       // the most tokens of a feed

  /// Tokens in the caches, which is the place of the next one.
  [[nodiscard]] std::int64_t place() const { return caches[0].length; }
};

/// Model::start_generation: plans caches of every block's attention for `capacity` tokens and the memory of every feed
/// that can come, by counting model.feed().
std::unique_ptr<Generation> start_cached_generation(Context& ctx, Model& model,
                                                    const std::vector<const Attention*>& attention, std::int64_t B,
                                                    std::int64_t capacity, std::int64_t chunk);

/// The beginning of every feed: checks the tokens [B, n] and gives back the memory of the feed before.
CachedGeneration& begin_feed(Generation& generation, const Tensor& tokens);

/// The end of every feed: logits [B, Vp] of each sequence's last token into memory of the generation. y [B*n, C] is
/// what the head [Vp, C] reads.
Tensor last_logits(Context& ctx, CachedGeneration& generation, const Tensor& y, const Tensor& head);

}  // namespace sfa
