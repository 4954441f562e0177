// The tiled core on a GPU as attention variants, `dense` and `sfa`, for bf16 and head sizes (Dqk and Dv apart) that are
// multiples of 16 up to 256. `impl: flash` takes the kernels for sm_90a where the card and the sizes are theirs and
// those for every card from compute capability 8.0 on otherwise; `impl: flash_sm80` takes the latter in any case.
#pragma once

#include "attention/attention.h"

namespace sfa {

std::string dense_flash_cuda_why_not(const AttentionConfig& config, const AttentionDims& dims, DType dtype);
std::unique_ptr<Attention> make_dense_flash_cuda(const AttentionConfig& config, const AttentionDims& dims, DType dtype);
std::unique_ptr<Attention> make_dense_flash_sm80(const AttentionConfig& config, const AttentionDims& dims, DType dtype);

/// Exact `topk` and `topk_pairs` run the dense core on zero-filled rows; so does `topk_2of4` on the kernels for every
/// card, while those for sm_90a multiply the compressed queries on sparse tensor cores. Saved for backward are the
/// sparse queries and keys, V, O and the log-sum-exp.
std::string sfa_flash_cuda_why_not(const AttentionConfig& config, const AttentionDims& dims, DType dtype);
std::unique_ptr<Attention> make_sfa_flash_cuda(const AttentionConfig& config, const AttentionDims& dims, DType dtype);
std::unique_ptr<Attention> make_sfa_flash_sm80(const AttentionConfig& config, const AttentionDims& dims, DType dtype);

}  // namespace sfa
