// Times every op of a context while it lives, and sums the times by kind and shape.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/observer.h"
#include "core/timeline.h"

namespace sfa {

/// Sum over the calls of one kind and shape. Time within ops that an op is made of counts for those alone.
struct OpTime {
  OpWork work;  // flops and bytes of all calls together
  std::int64_t calls = 0;
  double ms = 0;
};

class OpTimer final : public OpObserver {
 public:
  /// Becomes the context's observer until it is destroyed.
  explicit OpTimer(Context& ctx);
  ~OpTimer() override;
  OpTimer(const OpTimer&) = delete;
  OpTimer& operator=(const OpTimer&) = delete;

  void begin(Context& ctx, const OpWork& work) override;
  void end(Context& ctx) override;
  void enter(Context&, const std::string&) override {}
  void leave(Context&) override {}

  /// Adds what was seen since the last call; waits for the device. Milliseconds from the first op's begin to the last
  /// one's end.
  double collect();
  /// The longest first.
  [[nodiscard]] std::vector<OpTime> times() const;

 private:
  struct Call {
    std::size_t entry, begin, end;
    std::ptrdiff_t parent;  // -1: none
  };
  Context& ctx_;
  OpObserver* before_;
  Timeline watch_;
  std::vector<OpTime> entries_;
  std::vector<Call> calls_;
  std::ptrdiff_t open_ = -1;
};

}  // namespace sfa
