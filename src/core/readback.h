// A few bytes of device memory brought to the host without waiting: the copy is queued behind the work that makes them,
// and picked up when it is through.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "core/context.h"

namespace sfa {

class Readback {
 public:
  Readback(const Context& ctx, std::size_t bytes);
  ~Readback();
  Readback(const Readback&) = delete;
  Readback& operator=(const Readback&) = delete;

  /// Queues the copy behind all work queued on the context so far. Not while one is under way.
  void start(const Context& ctx, const Tensor& from);
  [[nodiscard]] bool under_way() const { return under_way_; }
  /// True once the copy is through, and then data() holds it until the next start(); never blocks.
  bool ready();
  [[nodiscard]] const void* data() const { return memory_; }

 private:
  std::size_t bytes_;
  std::vector<std::byte> host_;  // CPU
  void* memory_ = nullptr;       // page-locked on a GPU
  std::shared_ptr<void> event_;  // on a GPU
  bool under_way_ = false;
};

}  // namespace sfa
