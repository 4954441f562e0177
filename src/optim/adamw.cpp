#include "optim/adamw.h"

#include <algorithm>
#include <cmath>

#include "core/build_config.h"
#include "optim/adamw_cuda.h"

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

void norm_finish_cpu(const Tensor& partials, StepState& s) {
  const double* sums = static_cast<const double*>(partials.data);
  double total = 0;
  for (std::int64_t p = 0; p < kNormPartials; ++p) total += sums[p];
  s.grad_norm = static_cast<float>(std::sqrt(total));
  s.skip = std::isfinite(s.grad_norm) ? 0 : 1;
  s.clip = s.max_norm > 0 ? std::min(1.0f, s.max_norm / (s.grad_norm + 1e-6f)) : 1.0f;
}

void update_cpu(Context& ctx, const AdamW& a) {
  const StepState s = state_of(a.state);
  if (s.skip != 0) return;
  const float* grad = a.grad.as<float>();
  float *master = a.master.as<float>(), *m = a.m.as<float>(), *v = a.v.as<float>(), *param = a.param.as<float>();
  const std::int64_t n = a.master.numel();
  const float b1 = a.beta1, b2 = a.beta2, eps = a.eps, decay = a.weight_decay;
  const bool round = ctx.round_bf16;
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * s.clip;
    m[i] = b1 * m[i] + (1.0f - b1) * g;
    v[i] = b2 * v[i] + (1.0f - b2) * g * g;
    const float step = (m[i] * s.correction1) / (std::sqrt(v[i] * s.correction2) + eps);
    master[i] -= s.lr * (step + decay * master[i]);
    param[i] = round ? round_to_bf16(master[i]) : master[i];
  }
}

}  // namespace

void gradient_norm_accumulate(Context& ctx, const Tensor& grad, const Tensor& partials) {
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::gradient_norm_accumulate(ctx, grad, partials);
  }
  norm_accumulate_cpu(grad, partials);
}

void gradient_norm_finish(Context& ctx, const Tensor& partials, const Tensor& state) {
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::gradient_norm_finish(ctx, partials, state);
  }
  norm_finish_cpu(partials, state_of(state));
}

void adamw_update(Context& ctx, const AdamW& args) {
  require(args.grad.numel() == args.master.numel() && args.m.numel() == args.master.numel() &&
              args.v.numel() == args.master.numel() && args.param.numel() == args.master.numel(),
          "internal error: adamw_update: grad {}, master {}, param {}", args.grad, args.master, args.param);
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::adamw_update(ctx, args);
  }
  update_cpu(ctx, args);
}

}  // namespace sfa
