#include "models/generation.h"

#include <algorithm>

#include "ops/linear/linear.h"

namespace sfa {
namespace {

/// A feed of so many tokens at most takes the memory of decoding, which is not that of a prompt.
constexpr std::int64_t kDecodeTokens = 16;

}  // namespace

std::unique_ptr<Generation> start_cached_generation(Context& ctx, Model& model,
                                                    const std::vector<const Attention*>& attention, std::int64_t B,
                                                    std::int64_t capacity, std::int64_t chunk) {
  const ModelConfig& config = model.config();
  require(capacity <= config.max_position_embeddings, "{} tokens were asked for, but the model has {} positions",
          capacity, config.max_position_embeddings);
  auto g = std::make_unique<CachedGeneration>(model.device());
  g->batch = B;
  g->capacity = capacity;
  g->chunk = std::min(chunk, capacity);
  const auto plan_caches = [&] {
    g->caches.clear();
    for (const Attention* layer : attention) g->caches.push_back(layer->plan_cache(g->cache_arena, B, capacity));
  };
  plan_caches();
  // The most that any call takes: a full chunk, the longest one behind cached tokens, and the few tokens of decoding,
  // each ending at a full cache.
  ctx.planning = true;
  for (const std::int64_t n : {g->chunk, std::min(g->chunk, capacity - 1), std::min(g->chunk, kDecodeTokens)}) {
    if (n < 1) continue;
    for (KvCache& cache : g->caches) cache.length = capacity - n;
    model.feed(ctx, *g, Tensor(nullptr, DType::i32, model.device(), {B, n}));
  }
  ctx.planning = false;
  g->cache_arena.bind();
  g->memory.activations.bind();
  g->memory.scratch.bind();
  plan_caches();
  g->length = 0;
  return g;
}

CachedGeneration& begin_feed(Generation& generation, const Tensor& tokens) {
  auto& g = dynamic_cast<CachedGeneration&>(generation);
  require(tokens.dim(0) == g.batch && tokens.dim(1) >= 1 && tokens.dim(1) <= g.chunk,
          "internal error: {} fed, the chunk is {} x {}", tokens, g.batch, g.chunk);
  g.memory.activations.release(0);
  g.memory.scratch.release(0);
  return g;
}

Tensor last_logits(Context& ctx, CachedGeneration& g, const Tensor& y, const Tensor& head) {
  const std::int64_t B = g.batch, n = y.dim(0) / B;
  const Tensor logits = g.memory.activations.take(y.dtype, {B, head.dim(0)});
  for (std::int64_t b = 0; b < B; ++b)
    linear_forward(ctx, {y.slice(0, b * n + n - 1, 1), head, Tensor{}, logits.slice(0, b, 1), Tensor{}});
  g.length = g.place();
  return logits;
}

}  // namespace sfa
