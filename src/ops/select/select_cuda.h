// The CUDA side of select.h: same contracts, for D <= 256 and k <= 128. Called by select.cpp alone, after its checks.
#pragma once

#include "ops/select/select.h"

namespace sfa::cuda_ops {
void select_topk(Context& ctx, const Select& args);
void select_mask_gradient(Context& ctx, const Tensor& d_x, const Tensor& indices);
void select_expand(Context& ctx, const Tensor& values, const Tensor& indices, const Tensor& dense);
}  // namespace sfa::cuda_ops
