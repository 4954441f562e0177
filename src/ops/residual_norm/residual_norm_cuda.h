// The CUDA side of residual_norm.h: same contracts. Called by residual_norm.cpp alone, after its checks.
#pragma once

#include "ops/residual_norm/residual_norm.h"

namespace sfa::cuda_ops {
void residual_norm_forward(Context& ctx, const ResidualNormForward& args);
void residual_norm_backward(Context& ctx, const ResidualNormBackward& args);
}  // namespace sfa::cuda_ops
