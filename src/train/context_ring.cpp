#include "train/context_ring.h"

#include <chrono>
#include <utility>

namespace sfa {

GroupPlace group_place(const Config& config, const RankPlace& place) {
  const auto parts = static_cast<int>(config.dist.context_parallel);
  return {place.rank / parts, place.size / parts, {place.rank % parts, parts}};
}

RingBytes ring_bytes_a_hop(const Config& config, DType dtype) {
  const double tokens = static_cast<double>(config.data.micro_batch_size * config.data.seq_len) /
                        static_cast<double>(config.dist.context_parallel);
  const std::int64_t layers = config.model.num_hidden_layers;
  RingBytes sum;
  for (std::int64_t l = 0; l < layers; ++l) {
    const RingBytes one = ring_bytes_a_hop(config.model.attention_of(l), config.model.attention_dims(), dtype, tokens);
    sum.forward += one.forward / static_cast<double>(layers);
    sum.backward_gradients += one.backward_gradients / static_cast<double>(layers);
  }
  return sum;
}

void ContextRing::pass(Context& ctx, const Tensor& out, const Tensor& in) {
  require(communicator_ != nullptr, "internal error: a ring that is only planned");
  const PhaseScope phase(communicator_->control(), Phase::communicate);
  const auto begin = std::chrono::steady_clock::now();
  communicator_->exchange(ctx, out, first_rank_ + (rank() + 1) % size(), in,
                          first_rank_ + (rank() + size() - 1) % size());
  if (ctx.on_cuda() || !counts_waits_) return;
  wait_ms_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

void ContextRing::arrived(Context& ctx) {
  communicator_->join(ctx);
}

double ContextRing::take_wait_ms() {
  return std::exchange(wait_ms_, 0.0);
}

}  // namespace sfa
