// The CUDA side of adamw.h: same contracts. Called by adamw.cpp alone, after its checks.
#pragma once

#include "optim/adamw.h"

namespace sfa::cuda_ops {
void gradient_norm_accumulate(Context& ctx, const Tensor& grad, const Tensor& partials);
void gradient_norm_finish(Context& ctx, const Tensor& partials, const Tensor& state);
void adamw_update(Context& ctx, const AdamW& args);
}  // namespace sfa::cuda_ops
