// The guard of a step: is this update to be made? Decided on the device from the step's loss and gradient, in one place
// (guard_rule.h), so that no step waits for the host.
//   not finite: the mean loss, or the global norm of the gradient, is NaN or infinite
//   spike:      x > median + threshold * max(1.4826 MAD, floor |median|), x the loss or the norm, over the last
//   `window`
//               steps whose update was made, once there are as many. 1.4826 MAD estimates the standard deviation of a
//               normal distribution and is not moved by the outliers that are looked for (Rousseeuw and Croux, JASA 88,
//               1993); the floor (1 % of the loss, 10 % of the norm) keeps calm stretches from calling everything a
//               spike.
// What is left out leaves weights, moments, averages and the window as they were. `stop` and `rollback` halt the
// device: every later update is left out too, until the host, which learns of it some steps later, has acted. So what a
// run computes does not depend on when the host looked. The inputs are sums: several ranks add theirs up (partials,
// loss) before decide_step and all decide the same.
#pragma once

#include "optim/adamw.h"

namespace sfa {

enum class GuardAction : std::int32_t { off = 0, skip = 1, stop = 2, rollback = 3 };
enum class GuardCause : std::int32_t {
  none = 0,
  loss_not_finite = 1,
  gradient_not_finite = 2,
  loss_spike = 3,
  gradient_spike = 4
};

struct GuardOptions {
  GuardAction nonfinite = GuardAction::skip;  // not off
  GuardAction spike = GuardAction::off;
  float loss_threshold = 6;        // 0 = the loss is not watched for spikes
  float grad_norm_threshold = 10;  // 0 = the norm is not
  std::int32_t max_skips = 10;     // skipped updates in a row; one more stops
};

inline constexpr std::int64_t kGuardWindow = 1024;  // the longest window
inline constexpr std::int64_t kGuardEvents = 16;    // events that the device keeps

/// One update that was left out.
struct GuardEvent {
  std::int64_t step = 0;  // from 1
  GuardCause cause = GuardCause::none;
  GuardAction action = GuardAction::off;
  float loss = 0, grad_norm = 0;
  float score = 0, median = 0;         // of what spiked: (x - median) / scale
  std::int32_t in_a_row = 0;           // skipped updates up to and with this one
  std::int32_t nonfinite_tensors = 0;  // parameters whose gradient is not finite
  std::int32_t first_nonfinite = -1;   // the first of them in the list of parameters
  std::int32_t largest = -1;           // the parameter whose finite gradient has the largest norm
  float largest_norm = 0;
};

/// Lives in device memory through the run and belongs to a run's state: all but the ring of events goes into
/// checkpoints.
struct GuardState {
  std::int64_t updates = 0;   // made; AdamW's t
  std::int64_t skipped = 0;   // left out; event number i is events[i % kGuardEvents]
  std::int64_t in_a_row = 0;  // left out since the last one made
  std::int64_t seen = 0;      // steps that went into the window
  GuardAction halted = GuardAction::off;
  std::int32_t pad = 0;
  // Gradient noise scale: running averages of the two estimates (noise_scale() is their quotient).
  double noise_square = 0, noise_trace = 0;
  GuardEvent events[kGuardEvents];
};

/// Gradient noise scale tr(Sigma) / |G|^2 (McCandlish et al., arXiv 1812.06162, appendix A.1), from the norms of a
/// small batch (the first micro-step's) and of the whole one. Counts are of tokens, and so is the result.
struct NoiseOptions {
  double small_batch = 0, batch = 0;  // 0 = not measured; needs small_batch < batch
  double small_batches = 1;           // whose squared norms were added: one a rank
};
/// Tokens; 0 while the estimates give none (no step yet, or noise alone).
double noise_scale(const GuardState& state);

struct DecisionRule {
  GuardOptions guard;
  NoiseOptions noise;
  float beta1 = 0.9f, beta2 = 0.95f;
};

struct StepDecision {
  Tensor partials;             // [kNormPartials] doubles: squares of the whole gradient
  Tensor loss = {};            // [1] double: sum of the step's losses, or empty
  Tensor state;                // StepState bytes
  Tensor guard;                // GuardState bytes
  Tensor window = {};          // [2, W] f32: losses and norms; empty = spikes are not looked for
  Tensor small_partials = {};  // as partials, of the first micro-step's gradient; empty = noise is not measured
  DecisionRule rule = {};
};
/// Writes norm, clip, corrections and verdict into `state` and brings `guard` and `window` up to date.
void decide_step(Context& ctx, const StepDecision& args);

/// For the event of this step, if there is one: which parameter's gradient. Otherwise nothing is done. The first sums
/// squares, the second takes them into the event; between them several ranks, each with its part of every parameter,
/// add theirs up.
inline constexpr std::int64_t kLocateParts = 32;
struct LocateGradient {
  Tensor grad;   // flat, f32 or bf16
  Tensor spans;  // [P, 2] i64: offset and elements of every parameter
  Tensor sums;   // [P, kLocateParts] doubles, overwritten when there is an event
  Tensor state, guard;
};
void locate_gradient(Context& ctx, const LocateGradient& args);
void note_gradients(Context& ctx, const LocateGradient& args);

}  // namespace sfa
