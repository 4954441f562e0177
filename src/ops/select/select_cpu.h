// CPU side of select.h.
#pragma once

#include "ops/select/select.h"

namespace sfa::cpu_ops {
void select_topk(Context& ctx, const Select& args);
void select_mask_gradient(Context& ctx, const Tensor& d_x, const Tensor& indices);
void select_expand(Context& ctx, const Tensor& values, const Tensor& indices, const Tensor& dense);
}  // namespace sfa::cpu_ops
