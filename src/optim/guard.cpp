#include "optim/guard.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/build_config.h"
#include "optim/guard_cuda.h"
#include "optim/guard_rule.h"

namespace sfa {
namespace {

template <class T>
T& struct_of(const Tensor& bytes) {
  return *reinterpret_cast<T*>(bytes.as<std::uint8_t>());
}

double sum_of(const Tensor& partials) {
  const double* sums = static_cast<const double*>(partials.data);
  double total = 0;
  for (std::int64_t p = 0; p < kNormPartials; ++p) total += sums[p];
  return total;
}

// Of an even number of values, the mean of the two in the middle.
float median(std::vector<float> x) {
  const auto middle = x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2);
  std::nth_element(x.begin(), middle, x.end());
  if (x.size() % 2 == 1) return *middle;
  return 0.5f * (*std::max_element(x.begin(), middle) + *middle);
}

RobustSpread spread_of(const float* x, std::int64_t n) {
  std::vector<float> values(x, x + n);
  RobustSpread s;
  s.median = median(values);
  for (float& v : values) v = std::fabs(v - s.median);
  s.deviation = median(values);
  return s;
}

void decide_cpu(const StepDecision& a) {
  StepState& s = struct_of<StepState>(a.state);
  GuardState& g = struct_of<GuardState>(a.guard);
  StepInputs in;
  in.square = sum_of(a.partials);
  in.loss = a.loss.empty() ? 0.0f : static_cast<float>(*static_cast<const double*>(a.loss.data) * s.loss_scale);
  in.measure_noise = !a.small_partials.empty();
  if (in.measure_noise) in.small_square = sum_of(a.small_partials);
  float* window = nullptr;
  if (!a.window.empty()) {
    in.window_size = a.window.dim(1);
    window = a.window.as<float>();
    if (window_full(g, in.window_size)) {
      in.losses = spread_of(window, in.window_size);
      in.norms = spread_of(window + in.window_size, in.window_size);
    }
  }
  decide(in, a.rule, s, g, window);
}

void locate_cpu(const LocateGradient& a) {
  const StepState& s = struct_of<StepState>(a.state);
  if (s.event < 0) return;
  const std::int64_t* spans = a.spans.as<std::int64_t>();
  auto* sums = reinterpret_cast<double*>(a.sums.as<std::int64_t>());
  std::fill_n(sums, a.sums.numel(), 0.0);
  for (std::int64_t p = 0; p < a.spans.dim(0); ++p) {
    const float* grad = a.grad.as<float>() + spans[2 * p];
    double square = 0;
    for (std::int64_t i = 0; i < spans[2 * p + 1]; ++i)
      square += static_cast<double>(grad[i]) * static_cast<double>(grad[i]);
    sums[p * kLocateParts] = square;
  }
}

void note_cpu(const LocateGradient& a) {
  const StepState& s = struct_of<StepState>(a.state);
  if (s.event < 0) return;
  GuardEvent& e = struct_of<GuardState>(a.guard).events[s.event % kGuardEvents];
  const auto* sums = reinterpret_cast<const double*>(a.sums.as<std::int64_t>());
  for (std::int64_t p = 0; p < a.spans.dim(0); ++p) {
    double square = 0;
    for (std::int64_t i = 0; i < kLocateParts; ++i) square += sums[p * kLocateParts + i];
    note_gradient(e, static_cast<std::int32_t>(p), square);
  }
}

}  // namespace

double noise_scale(const GuardState& state) {
  return state.noise_square > 0 && state.noise_trace > 0 ? state.noise_trace / state.noise_square : 0.0;
}

void decide_step(Context& ctx, const StepDecision& args) {
  require(args.window.empty() || (args.window.rank == 2 && args.window.dim(1) <= kGuardWindow),
          "internal error: decide_step: window {}", args.window);
  require(args.small_partials.empty() ||
              (args.rule.noise.small_batch > 0 && args.rule.noise.small_batch < args.rule.noise.batch),
          "internal error: decide_step: noise from batches of {} and {}", args.rule.noise.small_batch,
          args.rule.noise.batch);
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::decide_step(ctx, args);
  }
  decide_cpu(args);
}

void locate_gradient(Context& ctx, const LocateGradient& args) {
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::locate_gradient(ctx, args);
  }
  locate_cpu(args);
}

void note_gradients(Context& ctx, const LocateGradient& args) {
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::note_gradients(ctx, args);
  }
  note_cpu(args);
}

}  // namespace sfa
