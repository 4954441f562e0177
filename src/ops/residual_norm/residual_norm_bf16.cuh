// The fast path of residual_norm_backward: bf16 rows of at most 1024 features, a multiple of 8, aligned to 16 bytes.
#pragma once

#include "cuda/state.h"
#include "ops/residual_norm/residual_norm.h"

namespace sfa::cuda_ops {

/// Queues d_residual and the partial sums of `blocks` blocks, [blocks][3][C] f32: d_weight, d_bias, d_x_bias. False,
/// with nothing queued, when the case is not one of those.
bool residual_norm_backward_bf16(CudaState& state, const ResidualNormBackward& args, float* partials,
                                 std::int64_t blocks);

}  // namespace sfa::cuda_ops
