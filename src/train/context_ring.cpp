#include "train/context_ring.h"

#include <chrono>
#include <utility>

namespace sfa {

GroupPlace group_place(const Config& config, const RankPlace& place) {
  const auto parts = static_cast<int>(config.dist.context_parallel);
  return {place.rank / parts, place.size / parts, {place.rank % parts, parts}};
}

void ContextRing::pass(Context& ctx, const Tensor& out, const Tensor& in) {
  require(communicator_ != nullptr, "internal error: a ring that is only planned");
  const PhaseScope phase(communicator_->control(), Phase::communicate);
  const auto begin = std::chrono::steady_clock::now();
  communicator_->exchange(ctx, out, first_rank_ + (rank() + 1) % size(), in,
                          first_rank_ + (rank() + size() - 1) % size());
  if (ctx.on_cuda()) return;
  wait_ms_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

void ContextRing::arrived(Context& ctx) {
  communicator_->join(ctx);
}

double ContextRing::take_wait_ms() {
  return std::exchange(wait_ms_, 0.0);
}

}  // namespace sfa
