// CUDA side of reduce.h.
#pragma once

#include "ops/reduce/reduce.h"

namespace sfa::cuda_ops {
void sum_add(Context& ctx, const Tensor& x, const Tensor& total);
void add_to(Context& ctx, const Tensor& from, const Tensor& to);
}  // namespace sfa::cuda_ops
