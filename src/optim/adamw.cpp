#include "optim/adamw.h"

#include <algorithm>
#include <cmath>

#include "core/build_config.h"
#include "optim/adamw_cuda.h"
#include "optim/update_rule.h"

namespace sfa {
namespace {

StepState& state_of(const Tensor& state) {
  return *reinterpret_cast<StepState*>(state.as<std::uint8_t>());
}

void norm_accumulate_cpu(const Tensor& grad, const Tensor& partials) {
  const float* g = grad.as<float>();
  double* sums = static_cast<double*>(partials.data);
  const std::int64_t n = grad.numel(), chunk = (n + kNormPartials - 1) / kNormPartials;
#pragma omp parallel for schedule(static)
  for (std::int64_t p = 0; p < kNormPartials; ++p) {
    double sum = 0;
    const std::int64_t end = std::min(n, (p + 1) * chunk);
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = p * chunk; i < end; ++i) sum += static_cast<double>(g[i]) * static_cast<double>(g[i]);
    sums[p] += sum;
  }
}

// param[i] = from[i], rounded stochastically; the same memory is fine.
void round_stochastically(float* param, const float* from, std::int64_t n, std::int64_t first, std::uint64_t seed,
                          std::int64_t update) {
#pragma omp parallel for schedule(static)
  for (std::int64_t group = 0; group < (n + 3) / 4; ++group) {
    const Random4 r = philox4(seed, kPurposeRounding, static_cast<std::uint64_t>(update),
                              static_cast<std::uint32_t>(first / 4 + group));
    for (std::int64_t i = 4 * group; i < std::min(n, 4 * group + 4); ++i)
      param[i] = stochastic_bf16(from[i], r.v[i % 4]);
  }
}

void update_cpu(Context& ctx, const AdamW& a) {
  const StepState s = state_of(a.state);
  if (s.skip != 0) return;
  const bool has_master = !a.master.empty();
  const float* grad = a.grad.as<float>();
  float *m = a.m.as<float>(), *v = a.v.as<float>(), *param = a.param.as<float>();
  float* weight = has_master ? a.master.as<float>() : param;
  const std::int64_t n = a.grad.numel();
  const float b1 = a.beta1, b2 = a.beta2, eps = a.eps, decay = a.weight_decay;
  const bool round = ctx.round_bf16 && !a.stochastic;
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * s.clip;
    m[i] = b1 * m[i] + (1.0f - b1) * g;
    v[i] = b2 * v[i] + (1.0f - b2) * g * g;
    const float step = (m[i] * s.correction1) / (std::sqrt(v[i] * s.correction2) + eps);
    weight[i] -= s.lr * (step + decay * weight[i]);
    param[i] = round ? round_to_bf16(weight[i]) : weight[i];
  }
  if (a.stochastic) round_stochastically(param, weight, n, a.first, a.seed, s.update);
  if (a.ema.empty()) return;
  float* ema = a.ema.as<float>();
  const float share = ema_weight(s.update, a.ema_decay);
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < n; ++i) ema[i] += share * (weight[i] - ema[i]);
}

}  // namespace

void gradient_norm_accumulate(Context& ctx, const Tensor& grad, const Tensor& partials) {
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::gradient_norm_accumulate(ctx, grad, partials);
  }
  norm_accumulate_cpu(grad, partials);
}

void adamw_update(Context& ctx, const AdamW& args) {
  const std::int64_t n = args.grad.numel();
  require((args.master.empty() || args.master.numel() == n) && args.m.numel() == n && args.v.numel() == n &&
              args.param.numel() == n && (args.ema.empty() || args.ema.numel() == n),
          "internal error: adamw_update: grad {}, master {}, param {}", args.grad, args.master, args.param);
  require(args.first % 4 == 0, "internal error: adamw_update: a range that begins at {}", args.first);
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::adamw_update(ctx, args);
  }
  update_cpu(ctx, args);
}

void round_weights(Context& ctx, const RoundWeights& args) {
  require(args.from.numel() == args.to.numel() && args.from.data != args.to.data,
          "internal error: round_weights: {} to {}", args.from, args.to);
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::round_weights(ctx, args);
  }
  const float* from = args.from.as<float>();
  float* to = args.to.as<float>();
  const std::int64_t n = args.from.numel();
  if (args.stochastic && args.update > 0) return round_stochastically(to, from, n, args.first, args.seed, args.update);
  std::copy_n(from, n, to);
  round_output(ctx, args.to);
}

}  // namespace sfa
