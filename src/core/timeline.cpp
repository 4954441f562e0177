#include "core/timeline.h"

#include <chrono>

#include "core/build_config.h"
#include "core/device_cuda.h"

namespace sfa {

Timeline::Timeline(Context& ctx) : ctx_(ctx) {}
Timeline::~Timeline() = default;

std::size_t Timeline::mark() {
  if constexpr (kHasCuda) {
    if (ctx_.on_cuda()) {
      if (used_ == moments_.size()) moments_.push_back(cuda_ops::make_event());
      cuda_ops::record_event(ctx_.cuda(), moments_[used_].get());
      return used_++;
    }
  }
  seconds_.resize(used_ + 1);
  seconds_[used_] = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  return used_++;
}

std::vector<double> Timeline::milliseconds() const {
  std::vector<double> out(used_);
  ctx_.synchronize();
  for (std::size_t i = 0; i < used_; ++i) {
    if constexpr (kHasCuda) {
      if (ctx_.on_cuda()) {
        out[i] = cuda_ops::milliseconds_between(moments_[0].get(), moments_[i].get());
        continue;
      }
    }
    out[i] = 1000 * (seconds_[i] - seconds_[0]);
  }
  return out;
}

}  // namespace sfa
