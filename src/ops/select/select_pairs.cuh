// select_topk for whole rotated pairs, on a GPU.
#pragma once

#include "cuda/state.h"
#include "ops/select/select.h"

namespace sfa::cuda_ops {

/// args.pairs is set, the rows are not empty, values and indices are contiguous.
void select_topk_pairs(CudaState& state, const Select& args);

}  // namespace sfa::cuda_ops
