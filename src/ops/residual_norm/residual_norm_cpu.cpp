#include "ops/residual_norm/residual_norm_cpu.h"

#include <algorithm>
#include <cmath>

namespace sfa::cpu_ops {

void residual_norm_forward(Context& ctx, const ResidualNormForward& args) {
  const std::int64_t N = args.residual.dim(0), C = args.residual.dim(1);
  const float* residual = args.residual.as<float>();
  const float* x = args.x.empty() ? nullptr : args.x.as<float>();
  const bool rms = args.mean.empty();
  const float *weight = args.weight.as<float>(), *bias = rms ? nullptr : args.bias.as<float>();
  float* sum_out = x ? args.residual_out.as<float>() : nullptr;
  float *y = args.y.as<float>(), *mean = rms ? nullptr : args.mean.as<float>(), *rstd = args.rstd.as<float>();
  const bool round = ctx.round_bf16;
#pragma omp parallel for schedule(static)
  for (std::int64_t n = 0; n < N; ++n) {
    const float* r = residual + n * C;
    if (x) {
      float* s = sum_out + n * C;
      for (std::int64_t c = 0; c < C; ++c) s[c] = r[c] + x[n * C + c];
      if (round)
        for (std::int64_t c = 0; c < C; ++c) s[c] = round_to_bf16(s[c]);
      r = s;
    }
    float m = 0;
    if (!rms) {
#pragma omp simd reduction(+ : m)
      for (std::int64_t c = 0; c < C; ++c) m += r[c];
      m /= static_cast<float>(C);
      mean[n] = m;
    }
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (std::int64_t c = 0; c < C; ++c) squares += (r[c] - m) * (r[c] - m);
    const float s = 1.0f / std::sqrt(squares / static_cast<float>(C) + args.eps);
    rstd[n] = s;
    float* to = y + n * C;
    for (std::int64_t c = 0; c < C; ++c) to[c] = (r[c] - m) * s * weight[c] + (bias ? bias[c] : 0.0f);
  }
  round_output(ctx, args.y);
}

namespace {

// to[c] += sum over rows of d [N,C]; threads own columns, rows in order.
void add_column_sums(const float* d, std::int64_t N, std::int64_t C, float* to) {
  constexpr std::int64_t kColumns = 32;
#pragma omp parallel for schedule(static)
  for (std::int64_t c0 = 0; c0 < C; c0 += kColumns) {
    const std::int64_t width = std::min(kColumns, C - c0);
    float sum[kColumns] = {};
    for (std::int64_t n = 0; n < N; ++n)
#pragma omp simd
      for (std::int64_t c = 0; c < width; ++c) sum[c] += d[n * C + c0 + c];
    for (std::int64_t c = 0; c < width; ++c) to[c0 + c] += sum[c];
  }
}

}  // namespace

void residual_norm_backward(Context& ctx, const ResidualNormBackward& args) {
  if (ctx.planning) return;
  const std::int64_t N = args.d_y.dim(0), C = args.d_y.dim(1);
  const float *d_y = args.d_y.as<float>(), *r = args.residual_out.as<float>(), *weight = args.weight.as<float>();
  const bool rms = args.mean.empty();
  const float *mean = rms ? nullptr : args.mean.as<float>(), *rstd = args.rstd.as<float>();
  const float* d_next = args.d_residual_out.empty() ? nullptr : args.d_residual_out.as<float>();
  float *d_r = args.d_residual.as<float>(), *d_weight = args.d_weight.as<float>();
  float* d_bias = rms ? nullptr : args.d_bias.as<float>();
  // Parameters: threads own columns, rows in order.
  constexpr std::int64_t kColumns = 32;
#pragma omp parallel for schedule(static)
  for (std::int64_t c0 = 0; c0 < C; c0 += kColumns) {
    const std::int64_t width = std::min(kColumns, C - c0);
    float dw[kColumns] = {}, db[kColumns] = {};
    for (std::int64_t n = 0; n < N; ++n) {
      const float m = rms ? 0.0f : mean[n];
#pragma omp simd
      for (std::int64_t c = 0; c < width; ++c) {
        const float g = d_y[n * C + c0 + c];
        dw[c] += g * (r[n * C + c0 + c] - m) * rstd[n];
        db[c] += g;
      }
    }
    for (std::int64_t c = 0; c < width; ++c) {
      d_weight[c0 + c] += dw[c];
      if (!rms) d_bias[c0 + c] += db[c];
    }
  }
#pragma omp parallel for schedule(static)
  for (std::int64_t n = 0; n < N; ++n) {
    const float *g = d_y + n * C, *row = r + n * C;
    const float m = rms ? 0.0f : mean[n];
    float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (std::int64_t c = 0; c < C; ++c) {
      const float gw = g[c] * weight[c];
      sum += gw;
      dot += gw * (row[c] - m) * rstd[n];
    }
    sum = rms ? 0.0f : sum / static_cast<float>(C);  // only a mean that was taken away has a gradient
    dot /= static_cast<float>(C);
    for (std::int64_t c = 0; c < C; ++c) {
      const float normed = (row[c] - m) * rstd[n];
      const float next = d_next ? d_next[n * C + c] : 0.0f;
      d_r[n * C + c] = next + (g[c] * weight[c] - sum - normed * dot) * rstd[n];
    }
  }
  round_output(ctx, args.d_residual);
  if (!args.d_x_bias.empty()) add_column_sums(d_r, N, C, args.d_x_bias.as<float>());
}

}  // namespace sfa::cpu_ops
