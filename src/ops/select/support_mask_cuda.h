// The CUDA side of support_mask.h: same contracts. Called by support_mask.cpp alone, after its checks.
#pragma once

#include "ops/select/support_mask.h"

namespace sfa::cuda_ops {
void mask_pack(Context& ctx, const Tensor& numbers, const Tensor& mask);
void mask_unpack(Context& ctx, const Tensor& mask, const Tensor& numbers);
}  // namespace sfa::cuda_ops
