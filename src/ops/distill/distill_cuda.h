// CUDA side of distill.h.
#pragma once

#include "ops/distill/distill.h"

namespace sfa::cuda_ops {
void distill_backward(Context& ctx, const DistillBackward& args);
}  // namespace sfa::cuda_ops
