#include "train/step_profiler.h"

#include "core/build_config.h"
#include "core/device_cuda.h"

namespace sfa {

StepProfiler::~StepProfiler() {
  try {
    stop();
  } catch (const Error&) {
    // The device has failed, and whoever used it has said so.
  }
}

void StepProfiler::before(std::int64_t step) {
  if constexpr (kHasCuda) {
    if (ranges_ != nullptr || !steps_.contains(step) || !ctx_.on_cuda()) return;
    ctx_.synchronize();
    ranges_ = cuda_ops::make_range_observer();
    ctx_.observer = ranges_.get();
    cuda_ops::profiler_start();
  }
}

void StepProfiler::after(std::int64_t step) {
  if (step >= steps_.last) stop();
}

void StepProfiler::stop() {
  if constexpr (kHasCuda) {
    if (ranges_ == nullptr) return;
    ctx_.observer = nullptr;
    ranges_.reset();
    ctx_.synchronize();
    cuda_ops::profiler_stop();
  }
}

}  // namespace sfa
