// CUDA side of balance.h.
#pragma once

#include "ops/balance/balance.h"

namespace sfa::cuda_ops {
void balance_backward(Context& ctx, const BalanceBackward& args);
}  // namespace sfa::cuda_ops
