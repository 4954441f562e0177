// The decision about one step, for both devices: called by the CPU, or by one thread on a GPU, once sums and medians
// are there. guard.h states the rule.
#pragma once

#include <cmath>

#include "core/rng.h"
#include "optim/guard.h"

namespace sfa {

inline constexpr float kLossFloor = 0.01f, kNormFloor = 0.1f;
inline constexpr double kNoiseDecay = 0.99;  // of the running averages of the noise scale's two estimates

struct RobustSpread {
  float median = 0, deviation = 0;  // deviation: median of |x - median|
};

struct StepInputs {
  double square = 0;        // squared global norm
  double small_square = 0;  // the same of the first micro-step's gradient; read when noise is measured
  float loss = 0;           // mean
  bool measure_noise = false;
  std::int64_t window_size = 0;  // W; 0 = no window
  RobustSpread losses, norms;    // of the window; read once it is full
};

/// True when every place of the window holds a value.
SFA_HOST_DEVICE inline bool window_full(const GuardState& g, std::int64_t window_size) {
  return window_size > 0 && g.seen >= window_size;
}

SFA_HOST_DEVICE inline float robust_score(float x, const RobustSpread& spread, float floor) {
  const float least = floor * fabsf(spread.median), sigma = 1.4826f * spread.deviation;
  const float scale = sigma > least ? sigma : least;
  return (x - spread.median) / (scale > 1e-30f ? scale : 1e-30f);
}

SFA_HOST_DEVICE inline GuardEvent judge(const StepInputs& in, const GuardOptions& o, const StepState& s,
                                        const GuardState& g) {
  GuardEvent e;
  e.step = s.step;
  e.loss = in.loss;
  e.grad_norm = s.grad_norm;
  const bool loss_finite = fabsf(in.loss) <= 3.4028235e38f, norm_finite = s.grad_norm <= 3.4028235e38f;
  if (!loss_finite || !norm_finite) {
    e.cause = loss_finite ? GuardCause::gradient_not_finite : GuardCause::loss_not_finite;
    e.action = o.nonfinite;
  } else if (o.spike != GuardAction::off && window_full(g, in.window_size)) {
    const float loss = robust_score(in.loss, in.losses, kLossFloor);
    const float norm = robust_score(s.grad_norm, in.norms, kNormFloor);
    const bool by_loss = o.loss_threshold > 0 && loss > o.loss_threshold;
    const bool by_norm = o.grad_norm_threshold > 0 && norm > o.grad_norm_threshold;
    if (by_loss || by_norm) {
      e.cause = by_loss ? GuardCause::loss_spike : GuardCause::gradient_spike;
      e.action = o.spike;
      e.score = by_loss ? loss : norm;
      e.median = by_loss ? in.losses.median : in.norms.median;
    }
  }
  return e;
}

SFA_HOST_DEVICE inline void measure_noise(const StepInputs& in, const NoiseOptions& n, GuardState& g) {
  const double b = n.small_batch, B = n.batch, ratio = B / b;
  const double big = in.square, small = in.small_square / n.small_batches * ratio * ratio;  // squared norms of means
  const double square = (B * big - b * small) / (B - b), trace = (small - big) / (1.0 / b - 1.0 / B);
  g.noise_square = kNoiseDecay * g.noise_square + (1.0 - kNoiseDecay) * square;
  g.noise_trace = kNoiseDecay * g.noise_trace + (1.0 - kNoiseDecay) * trace;
}

SFA_HOST_DEVICE inline void decide(const StepInputs& in, const DecisionRule& rule, StepState& s, GuardState& g,
                                   float* window) {
  const GuardOptions& o = rule.guard;
  s.loss = in.loss;
  s.grad_norm = static_cast<float>(sqrt(in.square));
  s.clip = s.max_norm > 0 && s.max_norm < s.grad_norm + 1e-6f ? s.max_norm / (s.grad_norm + 1e-6f) : 1.0f;
  s.skip = 1;
  s.event = -1;
  if (g.halted != GuardAction::off) return;
  GuardEvent e = judge(in, o, s, g);
  if (e.cause != GuardCause::none) {
    e.in_a_row = static_cast<std::int32_t>(++g.in_a_row);
    if (e.action == GuardAction::skip && g.in_a_row > o.max_skips) e.action = GuardAction::stop;
    if (e.action != GuardAction::skip) g.halted = e.action;
    s.event = g.skipped;
    g.events[g.skipped % kGuardEvents] = e;
    ++g.skipped;
    return;
  }
  s.skip = 0;
  g.in_a_row = 0;
  s.update = ++g.updates;
  const double t = static_cast<double>(s.update);
  s.correction1 = static_cast<float>(1.0 / (1.0 - pow(static_cast<double>(rule.beta1), t)));
  s.correction2 = static_cast<float>(1.0 / (1.0 - pow(static_cast<double>(rule.beta2), t)));
  if (in.window_size > 0) {
    const std::int64_t slot = g.seen % in.window_size;
    window[slot] = in.loss;
    window[in.window_size + slot] = s.grad_norm;
    ++g.seen;
  }
  if (in.measure_noise) measure_noise(in, rule.noise, g);
}

/// Takes the squared norm of parameter p's gradient into the event; called for p = 0, 1, ... in order.
SFA_HOST_DEVICE inline void note_gradient(GuardEvent& e, std::int32_t p, double square) {
  if (!(square <= 1.7976931348623157e308)) {
    if (e.nonfinite_tensors++ == 0) e.first_nonfinite = p;
  } else if (const float norm = static_cast<float>(sqrt(square)); e.largest < 0 || norm > e.largest_norm) {
    e.largest = p;
    e.largest_norm = norm;
  }
}

}  // namespace sfa
