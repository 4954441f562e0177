// Moments in a context's work: on a GPU events on its stream, so that nothing waits for them; on the CPU the clock.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "core/context.h"

namespace sfa {

class Timeline {
 public:
  explicit Timeline(Context& ctx);
  ~Timeline();
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;

  /// Marks the moment at which the work queued so far is done; returns the mark's number, counted from 0.
  std::size_t mark();
  /// Milliseconds from mark 0 to every mark. Waits for the device.
  [[nodiscard]] std::vector<double> milliseconds() const;
  /// Forgets all marks; their memory is used again.
  void restart() { used_ = 0; }

 private:
  Context& ctx_;
  std::size_t used_ = 0;
  std::vector<double> seconds_;                 // CPU
  std::vector<std::shared_ptr<void>> moments_;  // GPU
};

}  // namespace sfa
