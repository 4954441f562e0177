// Generation with GPT-2: the same block_forward, with keys and values taken from caches.
#include "models/gpt2/block.h"
#include "models/gpt2/gpt2.h"
#include "ops/embedding/embedding.h"
#include "ops/linear/linear.h"

namespace sfa {
namespace {

/// A feed of so many tokens at most takes the memory of decoding, which is not that of a prompt.
constexpr std::int64_t kDecodeTokens = 16;

struct Gpt2Generation final : Generation {
  Gpt2Generation(Device device) : memory(device), cache_arena("KV cache", device) {}
  ModelArenas memory;
  Arena cache_arena;
  std::vector<KvCache> caches;
  std::int64_t chunk = 0;
};

}  // namespace

std::unique_ptr<Generation> Gpt2::start_generation(Context& ctx, std::int64_t B, std::int64_t capacity,
                                                   std::int64_t chunk) {
  require(capacity <= config_.max_position_embeddings, "{} tokens were asked for, but the model has {} positions",
          capacity, config_.max_position_embeddings);
  auto g = std::make_unique<Gpt2Generation>(device_);
  g->batch = B;
  g->capacity = capacity;
  g->chunk = std::min(chunk, capacity);
  const auto plan_caches = [&] {
    g->caches.clear();
    for (std::int64_t l = 0; l < config_.num_hidden_layers; ++l)
      g->caches.push_back(attention_->plan_cache(g->cache_arena, B, capacity));
  };
  plan_caches();
  // The most that any call takes: a full chunk, the longest one behind cached tokens, and the few tokens of decoding,
  // each ending at a full cache.
  ctx.planning = true;
  for (const std::int64_t n : {g->chunk, std::min(g->chunk, capacity - 1), std::min(g->chunk, kDecodeTokens)}) {
    if (n < 1) continue;
    for (KvCache& cache : g->caches) cache.length = capacity - n;
    feed(ctx, *g, Tensor(nullptr, DType::i32, device_, {B, n}));
  }
  ctx.planning = false;
  g->cache_arena.bind();
  g->memory.activations.bind();
  g->memory.scratch.bind();
  plan_caches();
  g->length = 0;
  return g;
}

Tensor Gpt2::feed(Context& ctx, Generation& generation, const Tensor& tokens) {
  auto& g = dynamic_cast<Gpt2Generation&>(generation);
  const std::int64_t B = g.batch, n = tokens.dim(1), C = config_.hidden_size, place = g.caches[0].length;
  require(tokens.dim(0) == B && n >= 1 && n <= g.chunk, "internal error: {} fed, the chunk is {} x {}", tokens, B,
          g.chunk);
  g.memory.activations.release(0);
  g.memory.scratch.release(0);
  Arena& scratch = g.memory.scratch;
  // Nothing is kept for backward: all blocks work in the memory of one. A block reads the stream where the last one
  // left it and has it in `embedded` between its two branches.
  Activations acts = plan_activations(g.memory.activations, scratch, B, n, 1, "none");
  BlockActivations& block = acts.blocks[0];
  const Tensor logits = g.memory.activations.take(dtype_, {B, config_.padded_vocab_size()});

  const Ranges ranges{.causal = true, .window = config_.attention.window, .first_key = {}};
  embedding_forward(ctx, tokens, weights_.wte, weights_.wpe, place, acts.embedded.view({B, n, C}));
  Tensor residual = acts.embedded, branch;
  for (std::size_t l = 0; l < weights_.blocks.size(); ++l) {
    gpt2_block_forward(ctx, {config_, *attention_, weights_.blocks[l], scratch, &g.caches[l]}, block, residual, branch,
                       acts.branch, ranges);
    residual = block.norm2.residual;
    branch = acts.branch;
  }
  gpt2_norm_forward(ctx, config_, weights_.norm_f, residual, branch, acts.norm_f);
  for (std::int64_t b = 0; b < B; ++b)
    linear_forward(ctx,
                   {acts.norm_f.y.slice(0, b * n + n - 1, 1), weights_.wte, Tensor{}, logits.slice(0, b, 1), Tensor{}});
  g.length = g.caches[0].length;
  return logits;
}

}  // namespace sfa
