// CUDA side of reduce.h.
#pragma once

#include "ops/reduce/reduce.h"

namespace sfa::cuda_ops {
void sum_add(Context& ctx, const Tensor& x, const Tensor& total);
}  // namespace sfa::cuda_ops
