// CPU side of qk_norm_rope.h.
#pragma once

#include "ops/qk_norm_rope/qk_norm_rope.h"

namespace sfa::cpu_ops {
void qk_norm_rope_forward(Context& ctx, const QkNormRope& args);
void qk_norm_rope_backward(Context& ctx, const QkNormRopeBackward& args);
}  // namespace sfa::cpu_ops
