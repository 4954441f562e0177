// The fast path of select_topk: bf16 rows of 32, 64, 128 or 256 features, k <= 16, rows aligned to 16 bytes.
#pragma once

#include "cuda/state.h"
#include "ops/select/select.h"

namespace sfa::cuda_ops {

/// False, with nothing queued, when the case is not one of those.
bool select_topk_bf16(CudaState& state, const Select& args);

}  // namespace sfa::cuda_ops
