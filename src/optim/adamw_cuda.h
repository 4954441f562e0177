// The CUDA side of adamw.h: same contracts. Called by adamw.cpp alone, after its checks.
#pragma once

#include "optim/adamw.h"

namespace sfa::cuda_ops {
void gradient_norm_accumulate(Context& ctx, const Tensor& grad, const Tensor& partials);
void adamw_update(Context& ctx, const AdamW& args);
void round_weights(Context& ctx, const RoundWeights& args);
}  // namespace sfa::cuda_ops
