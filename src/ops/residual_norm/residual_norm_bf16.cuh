// The fast paths of residual_norm_backward: bf16 rows of a multiple of 8 features, aligned to 16 bytes.
#pragma once

#include <cstdint>

#include "cuda/state.h"
#include "ops/residual_norm/residual_norm.h"

namespace sfa::cuda_ops {

/// Layer norm of at most 1024 features. Queues d_residual and the partial sums of `blocks` blocks, [blocks][3][C] f32:
/// d_weight, d_bias, d_x_bias. False, with nothing queued, when the case is not one of those.
bool residual_norm_backward_bf16(CudaState& state, const ResidualNormBackward& args, float* partials,
                                 std::int64_t blocks);

/// RMS norm of at most 4096 features. Queues d_residual and the partial sums of d_weight, [blocks][C] f32, of at most
/// 528 blocks; returns how many. 0, with nothing queued, when the case is not one of those.
std::int64_t rms_norm_backward_bf16(CudaState& state, const ResidualNormBackward& args, float* partials);

}  // namespace sfa::cuda_ops
