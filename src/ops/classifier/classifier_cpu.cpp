#include "ops/classifier/classifier_cpu.h"

#include <algorithm>
#include <cmath>

#include "core/simd.h"
#include "ops/linear/linear_cpu.h"

namespace sfa::cpu_ops {
namespace {

// Whether sampling at temperature 0 would take the target: the largest logit, the lowest token among equals.
bool is_greedy(const float* logits, std::int64_t V, std::int32_t target) {
  return target >= 0 && std::max_element(logits, logits + V) - logits == target;
}

// One row: loss, and with `scale` the logits turned into their gradient in place.
float softmax_row(float* logits, std::int64_t V, std::int64_t Vp, std::int32_t target, bool backward, float scale) {
  if (target < 0) {
    if (backward) std::fill_n(logits, Vp, 0.0f);
    return 0.0f;
  }
  float top = logits[0];
#pragma omp simd reduction(max : top)
  for (std::int64_t v = 0; v < V; ++v) top = std::max(top, logits[v]);
  const float chosen = logits[target];
  float total = 0;
  if (!backward) {
#pragma omp simd reduction(+ : total)
    for (std::int64_t v = 0; v < V; ++v) total += simd::exp(logits[v] - top);
    return std::log(total) + top - chosen;
  }
#pragma omp simd reduction(+ : total)
  for (std::int64_t v = 0; v < V; ++v) {
    const float e = simd::exp(logits[v] - top);
    logits[v] = e;
    total += e;
  }
  const float factor = scale / total;
#pragma omp simd
  for (std::int64_t v = 0; v < V; ++v) logits[v] *= factor;
  logits[target] -= scale;
  std::fill_n(logits + V, Vp - V, 0.0f);
  return std::log(total) + top - chosen;
}

}  // namespace

void classifier_loss(Context& ctx, const Classifier& args) {
  const std::int64_t N = args.x.dim(0), C = args.x.dim(1), Vp = args.weight.dim(0);
  const bool backward = !args.d_x.empty();
  const std::int64_t chunk = classifier_chunk_rows(N, Vp);
  ArenaScope scope(args.scratch);
  Tensor logits = args.scratch.take(DType::f32, {chunk, Vp});
  if (ctx.planning) return;
  const float *x = args.x.as<float>(), *weight = args.weight.as<float>();
  const std::int32_t* targets = args.targets.as<std::int32_t>();
  float* losses = args.losses.as<float>();
  const float scale = args.loss_weight.empty() ? args.loss_scale : args.loss_scale * *args.loss_weight.as<float>();
  std::int32_t* greedy = args.greedy.empty() ? nullptr : args.greedy.as<std::int32_t>();
  for (std::int64_t n0 = 0; n0 < N; n0 += chunk) {
    const std::int64_t rows = std::min(chunk, N - n0);
    float* part = logits.as<float>();
    const Tensor used = logits.slice(0, 0, rows);
    {
      const OpScope op(ctx, [&] { return classifier_work(args, used).logits; });
      gemm({.transpose_b = true,
            .M = rows,
            .N = Vp,
            .K = C,
            .a = x + n0 * C,
            .lda = C,
            .b = weight,
            .ldb = C,
            .c = part,
            .ldc = Vp});
      round_output(ctx, used);
    }
    {
      const OpScope op(ctx, [&] { return classifier_work(args, used).softmax; });
#pragma omp parallel for schedule(static)
      for (std::int64_t n = 0; n < rows; ++n) {
        if (greedy != nullptr) greedy[n0 + n] = is_greedy(part + n * Vp, args.V, targets[n0 + n]) ? 1 : 0;
        losses[n0 + n] = softmax_row(part + n * Vp, args.V, Vp, targets[n0 + n], backward, scale);
      }
      if (backward) round_output(ctx, used);
    }
    if (!backward) continue;
    {
      const OpScope op(ctx, [&] { return classifier_work(args, used).d_x; });
      gemm({.M = rows,
            .N = C,
            .K = Vp,
            .a = part,
            .lda = Vp,
            .b = weight,
            .ldb = C,
            .c = args.d_x.as<float>() + n0 * C,
            .ldc = C});
    }
    const OpScope op(ctx, [&] { return classifier_work(args, used).d_weight; });
    gemm({.transpose_a = true,
          .M = Vp,
          .N = C,
          .K = rows,
          .a = part,
          .lda = Vp,
          .b = x + n0 * C,
          .ldb = C,
          .beta = 1.0f,
          .c = args.d_weight.as<float>(),
          .ldc = C});
  }
  if (backward) round_output(ctx, args.d_x);
}

}  // namespace sfa::cpu_ops
