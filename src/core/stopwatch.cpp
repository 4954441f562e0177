#include "core/stopwatch.h"

#include "core/build_config.h"
#include "core/device_cuda.h"

namespace sfa {

Stopwatch::Stopwatch(const Context& ctx) : ctx_(ctx) {
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) {
      first_ = cuda_ops::make_event();
      last_ = cuda_ops::make_event();
    }
  }
}

void Stopwatch::start() {
  if constexpr (kHasCuda) {
    if (ctx_.on_cuda()) return cuda_ops::record_event(ctx_.cuda(), first_.get());
  }
  begin_ = std::chrono::steady_clock::now();
}

double Stopwatch::stop() {
  if constexpr (kHasCuda) {
    if (ctx_.on_cuda()) {
      cuda_ops::record_event(ctx_.cuda(), last_.get());
      return cuda_ops::milliseconds_between(first_.get(), last_.get());
    }
  }
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin_).count();
}

}  // namespace sfa
