// SFA by posting lists, `impl: posting_list`: Algorithm 1 of arXiv 2603.22300. Queries are rows of (feature, value),
// keys are turned into lists of (key, value) feature by feature, and a score is a sum over the features that a query's
// lists name: no product with a zero is made, and none runs on tensor cores. GPU, forward only: for evaluation,
// generation and the record.
#pragma once

#include "attention/attention.h"

namespace sfa {

std::string sfa_posting_list_why_not(const AttentionConfig& config, const AttentionDims& dims, DType dtype);
std::unique_ptr<Attention> make_sfa_posting_list(const AttentionConfig& config, const AttentionDims& dims, DType dtype);

}  // namespace sfa
