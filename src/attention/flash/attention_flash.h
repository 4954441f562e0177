// The tiled core on a GPU as attention variants: `dense` and `sfa`, `impl: flash`, for bf16 on cards of compute
// capability 9.0.
#pragma once

#include "attention/attention.h"

namespace sfa {

std::string dense_flash_cuda_why_not(const AttentionConfig& config, const AttentionDims& dims, DType dtype);
std::unique_ptr<Attention> make_dense_flash_cuda(const AttentionConfig& config, const AttentionDims& dims, DType dtype);

/// Exact `topk` runs the dense core on zero-filled rows; `topk_2of4` multiplies the compressed queries on sparse tensor
/// cores. Saved for backward are the sparse queries and keys, V, O and the log-sum-exp.
std::string sfa_flash_cuda_why_not(const AttentionConfig& config, const AttentionDims& dims, DType dtype);
std::unique_ptr<Attention> make_sfa_flash_cuda(const AttentionConfig& config, const AttentionDims& dims, DType dtype);

}  // namespace sfa
