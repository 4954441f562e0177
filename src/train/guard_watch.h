// What the host learns of the guard (optim/guard.h), without making a step wait for it: the device's state is copied
// behind every step while no copy is under way, and looked at when it has arrived, usually a step later. What the run
// computes does not depend on when that is.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "core/readback.h"
#include "optim/optimizer.h"

namespace sfa {

class GuardWatch {
 public:
  GuardWatch(const Context& ctx, const Optimizer& optimizer);

  /// Behind a step: queues a copy of the device's state.
  void after_step(const Context& ctx);
  /// The events that have not been handed out yet, oldest first, as far as the host has heard; with `wait`, all of the
  /// steps queued so far. Of more than kGuardEvents at once the oldest are lost, and only counted.
  std::vector<GuardEvent> news(Context& ctx, bool wait);
  /// True when the host has heard by now that the device makes no update any more; never blocks.
  bool halted();
  /// As of the last news().
  [[nodiscard]] const GuardState& state() const { return state_; }
  /// After the optimizer's guard was written (a checkpoint was read): nothing before that is news.
  void restart(Context& ctx);

 private:
  const Optimizer& optimizer_;
  Readback readback_;
  GuardState state_;
  std::int64_t handed_out_ = 0;
};

/// "the gradient is not finite, first in 'h.3.attn.qkv.weight' (12 of 148 tensors), loss 3.2140": what happened,
/// without step and action.
std::string describe(const GuardEvent& event, const ParameterList& parameters, std::int64_t window);
/// The parameter that the event names: the first whose gradient is not finite, or the one of the largest norm; may be
/// "".
std::string tensor_of(const GuardEvent& event, const ParameterList& parameters);
std::string_view name_of(GuardCause cause);
std::string_view name_of(GuardAction action);

/// The guard's part of a checkpoint's state, and the inverse. `window` holds losses and norms. A checkpoint written
/// without a guard gives one that has made `updates` updates; another length of the window begins an empty one. Throws
/// Error (`where` opens the sentence) when the object is not what guard_json makes.
nlohmann::json guard_json(const GuardState& state, const std::vector<float>& window);
struct SavedGuard {
  GuardState state;
  std::vector<float> window;
};
SavedGuard parse_guard(const nlohmann::json& checkpoint_state, std::int64_t updates, std::int64_t window,
                       const std::string& where);

}  // namespace sfa
