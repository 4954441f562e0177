// The CUDA side of int8_rows.h. Called by int8_rows.cpp alone, after its checks.
#pragma once

#include "ops/int8_rows/int8_rows.h"

namespace sfa::cuda_ops {
void int8_round(Context& ctx, const Tensor& x);
void int8_append(Context& ctx, const Tensor& x, const Int8Rows& to, std::int64_t at);
void int8_expand(Context& ctx, const Int8Rows& from, const Tensor& x);
}  // namespace sfa::cuda_ops
