// `impl: flash` on the CPU, for `type: dense` and `type: sfa`: tiled attention with online softmax, vectorised with
// run-time dispatch (AVX2, AVX-512), OpenMP over heads and tiles. f32; no Tq x Tk matrix is kept; the same bits with
// any number of threads. SFA keeps values and indices of Q and K, V, O and the log-sum-exp for backward: no full-width
// queries or keys.
#pragma once

#include "attention/attention.h"

namespace sfa {

std::string dense_flash_cpu_why_not(const AttentionConfig& config, const AttentionDims& dims, DType dtype);
std::unique_ptr<Attention> make_dense_flash_cpu(const AttentionConfig& config, const AttentionDims& dims, DType dtype);

/// `zero_overlap: mask` is left to the reference.
std::string sfa_flash_cpu_why_not(const AttentionConfig& config, const AttentionDims& dims, DType dtype);
std::unique_ptr<Attention> make_sfa_flash_cpu(const AttentionConfig& config, const AttentionDims& dims, DType dtype);

}  // namespace sfa
