// The CUDA side of qk_norm_rope.h: same contracts. Called by qk_norm_rope.cpp alone, after its checks.
#pragma once

#include "ops/qk_norm_rope/qk_norm_rope.h"

namespace sfa::cuda_ops {
void qk_norm_rope_forward(Context& ctx, const QkNormRope& args);
void qk_norm_rope_backward(Context& ctx, const QkNormRopeBackward& args);
}  // namespace sfa::cuda_ops
