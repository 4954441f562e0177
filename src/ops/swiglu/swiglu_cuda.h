// The CUDA side of swiglu.h: same contracts. Called by swiglu.cpp alone, after its checks.
#pragma once

#include "ops/swiglu/swiglu.h"

namespace sfa::cuda_ops {
void swiglu_forward(Context& ctx, const Tensor& gate_up, const Tensor& y);
void swiglu_backward(Context& ctx, const SwigluBackward& args);
}  // namespace sfa::cuda_ops
