// CPU side of residual_norm.h.
#pragma once

#include "ops/residual_norm/residual_norm.h"

namespace sfa::cpu_ops {
void residual_norm_forward(Context& ctx, const ResidualNormForward& args);
void residual_norm_backward(Context& ctx, const ResidualNormBackward& args);
}  // namespace sfa::cpu_ops
