#include "eval/perplexity.h"

#include <cmath>
#include <numbers>
#include <vector>

namespace sfa {

PerplexityResult evaluate_perplexity(const PerplexityRun& run, ValidationSet& data) {
  double total = 0;
  std::int64_t bytes = 0;
  PerplexityResult result;
  std::vector<float> losses(static_cast<std::size_t>(run.losses.numel()));
  const std::int64_t end_of_text = data.shards().files().front()->info().end_of_text;
  for (std::int64_t i = 0; i < data.num_batches(); ++i) {
    const Batch& batch = data.batch(i);
    run.model.evaluate(run.ctx, run.arenas, run.upload(run.owner, run.ctx, batch), run.losses);
    run.ctx.copy(losses.data(), Device::cpu, run.losses.data, run.losses.device, losses.size() * sizeof(float));
    run.ctx.synchronize();
    for (std::size_t n = 0; n < losses.size(); ++n) {
      if (batch.targets[n] < 0) continue;
      total += static_cast<double>(losses[n]);
      if (result.documents.empty() || batch.tokens[n] == end_of_text) result.documents.emplace_back();
      result.documents.back().tokens += 1;
      result.documents.back().nats += static_cast<double>(losses[n]);
    }
    result.tokens += batch.num_targets;
    bytes += batch.target_bytes;
  }
  if (run.sum_over_ranks) run.sum_over_ranks(total, result.tokens, bytes);
  require(result.tokens > 0, "{}: the split holds no token to predict", data.shards().describe());
  result.loss = total / static_cast<double>(result.tokens);
  result.perplexity = std::exp(result.loss);
  result.bits_per_byte = bytes > 0 ? total / std::numbers::ln2 / static_cast<double>(bytes) : 0.0;
  return result;
}

}  // namespace sfa
