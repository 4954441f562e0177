// The CUDA side of linear.h: same contracts. Called by linear.cpp alone, after its checks.
#pragma once

#include "ops/linear/linear.h"

namespace sfa::cuda_ops {
void linear_forward(Context& ctx, const LinearForward& args);
void gelu_forward(Context& ctx, const Tensor& pre, const Tensor& y);
void linear_backward(Context& ctx, const LinearBackward& args);
}  // namespace sfa::cuda_ops
