// CPU side of linear.h: BLAS for the products, fused loops for the epilogues.
#pragma once

#include "ops/linear/linear.h"

namespace sfa::cpu_ops {

void linear_forward(Context& ctx, const LinearForward& args);
void gelu_forward(Context& ctx, const Tensor& pre, const Tensor& y);
void linear_backward(Context& ctx, const LinearBackward& args);

/// C [M,N] = alpha * A B + beta * C in row-major f32, A being [M,K] (or [K,M] when transposed), B [K,N] (or [N,K]).
struct Gemm {
  bool transpose_a = false, transpose_b = false;
  std::int64_t M = 0, N = 0, K = 0;
  float alpha = 1.0f;
  const float* a = nullptr;
  std::int64_t lda = 0;
  const float* b = nullptr;
  std::int64_t ldb = 0;
  float beta = 0.0f;
  float* c = nullptr;
  std::int64_t ldc = 0;
};
void gemm(const Gemm& g);

}  // namespace sfa::cpu_ops
