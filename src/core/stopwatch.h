// Time between two points of a context's work: events on a GPU's stream, the clock on the CPU.
#pragma once

#include <chrono>
#include <memory>

#include "core/context.h"

namespace sfa {

class Stopwatch {
 public:
  explicit Stopwatch(const Context& ctx);

  void start();
  /// Milliseconds since start(); waits for the work queued in between.
  double stop();

 private:
  const Context& ctx_;
  std::chrono::steady_clock::time_point begin_;
  std::shared_ptr<void> first_, last_;  // cudaEvent_t
};

}  // namespace sfa
