#include "eval/cached_losses.h"

#include <algorithm>
#include <cmath>

namespace sfa {

CachedLosses::CachedLosses(Context& ctx, Model& model, std::int64_t B, std::int64_t T)
    : ctx_(ctx), model_(model), B_(B), T_(T), arena_("tokens", model.device()) {
  arena_.take(DType::i32, {B, 1});
  arena_.bind();
  tokens_ = arena_.take(DType::i32, {B, 1});
  logits_.resize(static_cast<std::size_t>(B * model.config().padded_vocab_size()));
  if (model.dtype() == DType::bf16) bits_.resize(logits_.size());
}

void CachedLosses::read_logits(const Tensor& logits) {
  void* to = bits_.empty() ? static_cast<void*>(logits_.data()) : bits_.data();
  ctx_.copy(to, Device::cpu, logits.data, logits.device, static_cast<std::size_t>(logits.bytes()));
  ctx_.synchronize();
  std::transform(bits_.begin(), bits_.end(), logits_.begin(), bf16_value);
}

void CachedLosses::operator()(const Batch& batch, std::vector<float>& losses) {
  const std::unique_ptr<Generation> generation = model_.start_generation(ctx_, B_, T_, 1);
  const std::int64_t V = model_.config().vocab_size, padded = model_.config().padded_vocab_size();
  std::vector<std::int32_t> now(static_cast<std::size_t>(B_));
  for (std::int64_t t = 0; t < T_; ++t) {
    for (std::int64_t b = 0; b < B_; ++b)
      now[static_cast<std::size_t>(b)] = batch.tokens[static_cast<std::size_t>(b * T_ + t)];
    ctx_.copy(tokens_.data, tokens_.device, now.data(), Device::cpu, now.size() * sizeof(std::int32_t));
    read_logits(model_.feed(ctx_, *generation, tokens_));
#pragma omp parallel for schedule(static)
    for (std::int64_t b = 0; b < B_; ++b) {
      const std::size_t place = static_cast<std::size_t>(b * T_ + t);
      const float* row = logits_.data() + b * padded;
      const float most = *std::max_element(row, row + V);
      double sum = 0;
      for (std::int64_t v = 0; v < V; ++v) sum += static_cast<double>(std::exp(row[v] - most));
      const std::int32_t target = batch.targets[place];
      losses[place] = target < 0 ? 0.0f : static_cast<float>(std::log(sum)) + most - row[target];
    }
  }
}

}  // namespace sfa
