// Threads share out the positions of a sequence: the angles of a position are computed once for all sequences and
// heads. In the backward, chunks of positions leave partial sums of the weights' gradients, which are added in order;
// the number of chunks is fixed, so that the bits do not depend on the number of threads.
#include "ops/qk_norm_rope/qk_norm_rope_cpu.h"

#include <algorithm>
#include <cmath>

namespace sfa::cpu_ops {
namespace {

constexpr std::int64_t kChunks = 32;

struct Angles {
  explicit Angles(std::int64_t half) : cosine(static_cast<std::size_t>(half)), sine(static_cast<std::size_t>(half)) {}
  void set(const std::vector<double>& frequencies, std::int64_t position) {
    for (std::size_t i = 0; i < cosine.size(); ++i) {
      const double angle = static_cast<double>(position) * frequencies[i];
      cosine[i] = static_cast<float>(std::cos(angle));
      sine[i] = static_cast<float>(std::sin(angle));
    }
  }
  std::vector<float> cosine, sine;
};

// One head; returns its rstd. `y` may be `x`.
float head_forward(const float* x, const float* weight, const Angles& at, float eps, std::int64_t D, float* y) {
  const std::int64_t half = D / 2;
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t i = 0; i < D; ++i) squares += x[i] * x[i];
  const float rstd = 1.0f / std::sqrt(squares / static_cast<float>(D) + eps);
  const float *cosine = at.cosine.data(), *sine = at.sine.data();
#pragma omp simd
  for (std::int64_t i = 0; i < half; ++i) {
    const float low = x[i] * rstd * weight[i], high = x[i + half] * rstd * weight[i + half];
    y[i] = low * cosine[i] - high * sine[i];
    y[i + half] = high * cosine[i] + low * sine[i];
  }
  return rstd;
}

struct HeadGradient {
  const float *d_y, *x, *weight;
  float* d_x;       // may be d_y
  float* d_weight;  // [D], added to
};

// One head. `d_z` [D] is room for the gradient of the normed head.
void head_backward(const HeadGradient& g, const Angles& at, float rstd, std::int64_t D, float* d_z) {
  const std::int64_t half = D / 2;
  const float *cosine = at.cosine.data(), *sine = at.sine.data();
  for (std::int64_t i = 0; i < half; ++i) {
    const float low = g.d_y[i], high = g.d_y[i + half];
    d_z[i] = low * cosine[i] + high * sine[i];
    d_z[i + half] = high * cosine[i] - low * sine[i];
  }
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t i = 0; i < D; ++i) {
    const float normed = g.x[i] * rstd;
    g.d_weight[i] += d_z[i] * normed;
    dot += d_z[i] * g.weight[i] * normed;
  }
  dot /= static_cast<float>(D);
  for (std::int64_t i = 0; i < D; ++i) g.d_x[i] = (d_z[i] * g.weight[i] - g.x[i] * rstd * dot) * rstd;
}

}  // namespace

void qk_norm_rope_forward(Context& ctx, const QkNormRope& args) {
  const std::int64_t B = args.x.dim(0), T = args.x.dim(1), row = args.x.dim(2), out_row = args.y.dim(2), D = args.D,
                     heads = args.H + args.G;
  const std::vector<double> frequencies = rope_frequencies(D, args.theta);
  const float *x = args.x.as<float>(), *q_weight = args.q_weight.as<float>(), *k_weight = args.k_weight.as<float>();
  float *y = args.y.as<float>(), *rstd = args.rstd.empty() ? nullptr : args.rstd.as<float>();
#pragma omp parallel
  {
    Angles at(D / 2);
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < T; ++t) {
      at.set(frequencies, args.first_position + t);
      for (std::int64_t n = t; n < B * T; n += T) {
        const float* from = x + n * row;
        float* to = y + n * out_row;
        for (std::int64_t h = 0; h < heads; ++h) {
          const float s = head_forward(from + h * D, h < args.H ? q_weight : k_weight, at, args.eps, D, to + h * D);
          if (rstd) rstd[n * heads + h] = s;
        }
        if (to != from) std::copy(from + heads * D, from + out_row, to + heads * D);
      }
    }
  }
  round_output(ctx, args.y);
}

void qk_norm_rope_backward(Context& ctx, const QkNormRopeBackward& args) {
  const std::int64_t B = args.x.dim(0), T = args.x.dim(1), row = args.x.dim(2), D = args.D, heads = args.H + args.G,
                     chunks = std::min(kChunks, T);
  ArenaScope scope(args.scratch);
  const Tensor partials = args.scratch.take(DType::f32, {chunks, 2, D});  // d_q_weight, d_k_weight
  if (ctx.planning) return;
  ctx.zero(partials);
  const std::vector<double> frequencies = rope_frequencies(D, args.theta);
  const float *x = args.x.as<float>(), *d_y = args.d_y.as<float>(), *rstd = args.rstd.as<float>(),
              *q_weight = args.q_weight.as<float>(), *k_weight = args.k_weight.as<float>();
  float *d_x = args.d_x.as<float>(), *sums = partials.as<float>();
#pragma omp parallel
  {
    Angles at(D / 2);
    std::vector<float> d_z(static_cast<std::size_t>(D));
#pragma omp for schedule(static)
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk)
      for (std::int64_t t = chunk * T / chunks; t < (chunk + 1) * T / chunks; ++t) {
        at.set(frequencies, args.first_position + t);
        for (std::int64_t n = t; n < B * T; n += T) {
          for (std::int64_t h = 0; h < heads; ++h) {
            const std::int64_t i = n * row + h * D;
            const bool is_query = h < args.H;
            head_backward({.d_y = d_y + i,
                           .x = x + i,
                           .weight = is_query ? q_weight : k_weight,
                           .d_x = d_x + i,
                           .d_weight = sums + (2 * chunk + (is_query ? 0 : 1)) * D},
                          at, rstd[n * heads + h], D, d_z.data());
          }
          if (d_x != d_y) std::copy(d_y + n * row + heads * D, d_y + (n + 1) * row, d_x + n * row + heads * D);
        }
      }
  }
  float *d_q_weight = args.d_q_weight.as<float>(), *d_k_weight = args.d_k_weight.as<float>();
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk)
    for (std::int64_t i = 0; i < D; ++i) {
      d_q_weight[i] += sums[2 * chunk * D + i];
      d_k_weight[i] += sums[(2 * chunk + 1) * D + i];
    }
  round_output(ctx, args.d_x);
}

}  // namespace sfa::cpu_ops
