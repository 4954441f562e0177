#include "train/guard_watch.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace sfa {

GuardWatch::GuardWatch(const Context& ctx, const Optimizer& optimizer)
    : optimizer_(optimizer), readback_(ctx, sizeof(GuardState)) {}

void GuardWatch::after_step(const Context& ctx) {
  if (!readback_.under_way()) readback_.start(ctx, optimizer_.guard_memory());
}

bool GuardWatch::halted() {
  if (readback_.ready()) std::memcpy(static_cast<void*>(&state_), readback_.data(), sizeof state_);
  return state_.halted != GuardAction::off;
}

std::vector<GuardEvent> GuardWatch::news(Context& ctx, bool wait) {
  if (wait)
    state_ = optimizer_.read_guard(ctx);
  else if (readback_.ready())
    std::memcpy(static_cast<void*>(&state_), readback_.data(), sizeof state_);
  std::vector<GuardEvent> events;
  handed_out_ = std::max(handed_out_, state_.skipped - kGuardEvents);
  for (; handed_out_ < state_.skipped; ++handed_out_) events.push_back(state_.events[handed_out_ % kGuardEvents]);
  return events;
}

void GuardWatch::restart(Context& ctx) {
  ctx.synchronize();
  (void)readback_.ready();
  state_ = optimizer_.read_guard(ctx);
  handed_out_ = state_.skipped;
}

std::string_view name_of(GuardCause cause) {
  switch (cause) {
    case GuardCause::none:
      return "none";
    case GuardCause::loss_not_finite:
      return "loss_not_finite";
    case GuardCause::gradient_not_finite:
      return "gradient_not_finite";
    case GuardCause::loss_spike:
      return "loss_spike";
    case GuardCause::gradient_spike:
      return "gradient_spike";
  }
  return "";
}

std::string_view name_of(GuardAction action) {
  switch (action) {
    case GuardAction::off:
      return "off";
    case GuardAction::skip:
      return "skip";
    case GuardAction::stop:
      return "stop";
    case GuardAction::rollback:
      return "rollback";
  }
  return "";
}

std::string tensor_of(const GuardEvent& e, const ParameterList& parameters) {
  const std::int32_t index = e.first_nonfinite >= 0 ? e.first_nonfinite : e.largest;
  return index >= 0 ? parameters.all().at(static_cast<std::size_t>(index)).name : "";
}

std::string describe(const GuardEvent& e, const ParameterList& parameters, std::int64_t window) {
  const std::string tensor = tensor_of(e, parameters);
  const std::string where =
      e.nonfinite_tensors > 0
          ? fmt::format("first in '{}' ({} of {} tensors)", tensor, e.nonfinite_tensors, parameters.all().size())
          : fmt::format("largest in '{}' (norm {:.4g} of {:.4g})", tensor, e.largest_norm, e.grad_norm);
  const auto spike = [&](const char* what, float x) {
    return fmt::format("the {} {:.4f} is a spike, {:.1f} robust deviations above {:.4f}, the median of {} steps", what,
                       x, e.score, e.median, window);
  };
  switch (e.cause) {
    case GuardCause::loss_not_finite:
      return fmt::format("the loss is {}, the gradient is {}, {}", e.loss,
                         e.nonfinite_tensors > 0 ? "not finite" : "finite", where);
    case GuardCause::gradient_not_finite:
      // Finite elements whose squares add up to more than a float holds have no tensor that is not finite.
      return fmt::format("the gradient is not finite, {}, loss {:.4f}", where, e.loss);
    case GuardCause::loss_spike:
      return fmt::format("{}; gradient {}", spike("loss", e.loss), where);
    case GuardCause::gradient_spike:
      return fmt::format("{}; {}; loss {:.4f}", spike("gradient's norm", e.grad_norm), where, e.loss);
    case GuardCause::none:
      break;
  }
  return "nothing happened";
}

nlohmann::json guard_json(const GuardState& s, const std::vector<float>& window) {
  return {{"updates", s.updates},           {"skipped", s.skipped},         {"in_a_row", s.in_a_row}, {"seen", s.seen},
          {"noise_square", s.noise_square}, {"noise_trace", s.noise_trace}, {"window", window}};
}

SavedGuard parse_guard(const nlohmann::json& checkpoint_state, std::int64_t updates, std::int64_t window,
                       const std::string& where) {
  SavedGuard saved;
  saved.window.resize(static_cast<std::size_t>(2 * window));
  saved.state.updates = updates;
  const auto it = checkpoint_state.find("guard");
  if (it == checkpoint_state.end()) return saved;
  try {
    GuardState& s = saved.state;
    const std::pair<const char*, std::int64_t*> counts[] = {
        {"updates", &s.updates}, {"skipped", &s.skipped}, {"in_a_row", &s.in_a_row}, {"seen", &s.seen}};
    for (const auto& [name, field] : counts) {
      *field = it->at(name).get<std::int64_t>();
      require(*field >= 0, "{}: the guard's '{}' is {}", where, name, *field);
    }
    s.noise_square = it->at("noise_square").get<double>();
    s.noise_trace = it->at("noise_trace").get<double>();
    auto values = it->at("window").get<std::vector<float>>();
    if (values.size() == saved.window.size())
      saved.window = std::move(values);
    else
      s.seen = 0;
  } catch (const nlohmann::json::exception& e) {
    fail("{}: the state of the guard can't be read: {}", where, e.what());
  }
  return saved;
}

}  // namespace sfa
