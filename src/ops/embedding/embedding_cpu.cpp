#include "ops/embedding/embedding_cpu.h"

namespace sfa::cpu_ops {

void embedding_forward(Context& ctx, const Tensor& tokens, const Tensor& wte, const Tensor& wpe,
                       std::int64_t first_position, const Tensor& out) {
  const std::int64_t B = tokens.dim(0), T = tokens.dim(1), C = out.dim(2);
  const std::int32_t* id = tokens.as<std::int32_t>();
  const float* table = wte.as<float>();
  const float* positions = wpe.empty() ? nullptr : wpe.as<float>();
  float* y = out.as<float>();
#pragma omp parallel for collapse(2) schedule(static)
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < T; ++t) {
      const float* row = table + id[b * T + t] * C;
      const float* place = positions ? positions + (first_position + t) * C : nullptr;
      float* to = y + (b * T + t) * C;
      for (std::int64_t c = 0; c < C; ++c) to[c] = row[c] + (place ? place[c] : 0.0f);
    }
  round_output(ctx, out);
}

void embedding_backward(Context& ctx, const EmbeddingBackward& args) {
  if (ctx.planning) return;
  const std::int64_t B = args.d_out.dim(0), T = args.d_out.dim(1), C = args.d_out.dim(2);
  const std::int32_t* id = args.tokens.as<std::int32_t>();
  const float* d_out = args.d_out.as<float>();
  float* d_wte = args.d_wte.as<float>();
  float* d_wpe = args.d_wpe.empty() ? nullptr : args.d_wpe.as<float>();
  // Threads own columns, so that every element is summed in the order of the rows.
  constexpr std::int64_t kColumns = 32;
#pragma omp parallel for schedule(static)
  for (std::int64_t c0 = 0; c0 < C; c0 += kColumns) {
    const std::int64_t c1 = c0 + kColumns < C ? c0 + kColumns : C;
    for (std::int64_t n = 0; n < B * T; ++n) {
      const float* from = d_out + n * C;
      float* to = d_wte + id[n] * C;
      for (std::int64_t c = c0; c < c1; ++c) to[c] += from[c];
      if (d_wpe) {
        float* place = d_wpe + (n % T) * C;
        for (std::int64_t c = c0; c < c1; ++c) place[c] += from[c];
      }
    }
  }
}

}  // namespace sfa::cpu_ops
