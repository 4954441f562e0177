#include "ops/feature_gate/feature_gate.h"

#include <algorithm>

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/feature_gate/feature_gate_cuda.h"

namespace sfa {
namespace {

void check_gate(const Tensor& rows, const Tensor& weight, const Tensor& kept, const char* what) {
  require(rows.rank == 2 && rows.contiguous() && weight.rank == 1 && weight.dim(0) <= rows.dim(1) &&
              (kept.empty() || (kept.rank == 2 && kept.contiguous() && kept.dim(0) == rows.dim(0) &&
                                kept.dim(1) == weight.dim(0) && kept.dtype == rows.dtype)),
          "internal error: {}: rows {}, weight {}, kept {}", what, rows, weight, kept);
}

OpWork work(const char* kind, const Tensor& rows, const Tensor& weight, double bytes) {
  return {.kind = kind, .shape = fmt::format("{} x {}", rows.dim(0), weight.dim(0)), .bytes = bytes};
}

// Of the gated columns of N rows.
double column_bytes(const Tensor& rows, const Tensor& weight) {
  return static_cast<double>(rows.dim(0) * weight.dim(0)) * static_cast<double>(size_of(rows.dtype));
}

void forward_cpu(Context& ctx, const FeatureGate& a) {
  const std::int64_t C = a.weight.dim(0), row = a.rows.dim(1);
  const float* weight = a.weight.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t n = 0; n < a.rows.dim(0); ++n) {
    float* x = a.rows.as<float>() + n * row;
    if (!a.kept.empty()) std::copy_n(x, C, a.kept.as<float>() + n * C);
    for (std::int64_t c = 0; c < C; ++c) x[c] = ctx.round_bf16 ? round_to_bf16(weight[c] * x[c]) : weight[c] * x[c];
  }
}

// A thread owns neighbouring columns, so that their sums run in a fixed order.
void backward_cpu(Context& ctx, const FeatureGateBackward& a) {
  constexpr std::int64_t kColumns = 64;
  const std::int64_t N = a.d_rows.dim(0), C = a.weight.dim(0), row = a.d_rows.dim(1);
  const float* weight = a.weight.as<float>();
  float* d_weight = a.d_weight.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t first = 0; first < C; first += kColumns) {
    const std::int64_t end = std::min(C, first + kColumns);
    float sum[kColumns] = {};
    for (std::int64_t n = 0; n < N; ++n) {
      float* d = a.d_rows.as<float>() + n * row;
      const float* x = a.kept.as<float>() + n * C;
      for (std::int64_t c = first; c < end; ++c) {
        sum[c - first] += d[c] * x[c];
        d[c] = ctx.round_bf16 ? round_to_bf16(weight[c] * d[c]) : weight[c] * d[c];
      }
    }
    for (std::int64_t c = first; c < end; ++c) d_weight[c] += sum[c - first];
  }
}

}  // namespace

void feature_gate_forward(Context& ctx, const FeatureGate& args) {
  check_gate(args.rows, args.weight, args.kept, "feature_gate_forward");
  if (ctx.planning || args.rows.numel() == 0) return;
  const OpScope scope(ctx, [&] {
    return work("feature gate forward", args.rows, args.weight,
                2 * column_bytes(args.rows, args.weight) + bytes_of({args.weight, args.kept}));
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::feature_gate_forward(ctx, args);
  }
  forward_cpu(ctx, args);
}

void feature_gate_backward(Context& ctx, const FeatureGateBackward& args) {
  check_gate(args.d_rows, args.weight, args.kept, "feature_gate_backward");
  require(!args.kept.empty() && args.d_weight.rank == 1 && args.d_weight.dim(0) == args.weight.dim(0),
          "internal error: feature_gate_backward: kept {}, d_weight {}", args.kept, args.d_weight);
  const OpScope scope(ctx, [&] {
    return work(
        "feature gate backward", args.d_rows, args.weight,
        2 * column_bytes(args.d_rows, args.weight) + bytes_of({args.weight, args.kept, args.d_weight, args.d_weight}));
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::feature_gate_backward(ctx, args);
  }
  if (!ctx.planning) backward_cpu(ctx, args);
}

}  // namespace sfa
