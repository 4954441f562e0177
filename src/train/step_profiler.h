// train.profile_steps: while the chosen steps run, ops and blocks have names on the GPU's time line, and a profiler
// that waits for cudaProfilerStart records. On the CPU it does nothing.
#pragma once

#include <memory>

#include "config/config.h"
#include "core/observer.h"

namespace sfa {

class StepProfiler {
 public:
  StepProfiler(Context& ctx, StepRange steps) : ctx_(ctx), steps_(steps) {}
  ~StepProfiler();
  StepProfiler(const StepProfiler&) = delete;
  StepProfiler& operator=(const StepProfiler&) = delete;

  /// Around step `step`, counted from 1. What ends the recording waits for the device first.
  void before(std::int64_t step);
  void after(std::int64_t step);

 private:
  void stop();
  Context& ctx_;
  StepRange steps_;
  std::unique_ptr<OpObserver> ranges_;  // set while recording
};

}  // namespace sfa
