#include "ops/swiglu/swiglu_cpu.h"

#include "core/simd.h"

namespace sfa::cpu_ops {
namespace {

inline float sigmoid(float a) {
  return 1.0f / (1.0f + simd::exp(-a));
}

}  // namespace

void swiglu_forward(Context& ctx, const Tensor& gate_up, const Tensor& y) {
  const std::int64_t N = y.dim(0), F = y.dim(1);
  const float* from = gate_up.as<float>();
  float* to = y.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t n = 0; n < N; ++n) {
    const float *gate = from + n * 2 * F, *up = gate + F;
    float* row = to + n * F;
#pragma omp simd
    for (std::int64_t f = 0; f < F; ++f) row[f] = gate[f] * sigmoid(gate[f]) * up[f];
  }
  round_output(ctx, y);
}

void swiglu_backward(Context& ctx, const SwigluBackward& args) {
  const std::int64_t N = args.d_y.dim(0), F = args.d_y.dim(1);
  const float *from = args.gate_up.as<float>(), *d_y = args.d_y.as<float>();
  float *to = args.d_gate_up.as<float>(), *y = args.y.empty() ? nullptr : args.y.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t n = 0; n < N; ++n) {
    const float *gate = from + n * 2 * F, *up = gate + F, *d = d_y + n * F;
    float *d_gate = to + n * 2 * F, *d_up = d_gate + F;
    if (y) {
      float* again = y + n * F;
#pragma omp simd
      for (std::int64_t f = 0; f < F; ++f) again[f] = gate[f] * sigmoid(gate[f]) * up[f];
    }
#pragma omp simd
    for (std::int64_t f = 0; f < F; ++f) {  // the outputs may lie where the inputs did
      const float a = gate[f], u = up[f], s = sigmoid(a);
      d_gate[f] = d[f] * u * s * (1.0f + a * (1.0f - s));
      d_up[f] = d[f] * a * s;
    }
  }
  round_output(ctx, args.d_gate_up);
  if (y) round_output(ctx, args.y);
}

}  // namespace sfa::cpu_ops
