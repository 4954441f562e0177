// What is written to a KV cache on the GPU as it is; rows in 8 bits are ops/int8_rows.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa::flash {

/// Rows [B, n, G, width] to tokens [at, at + n) of a cache of the same type. Any strides.
void append_rows(Context& ctx, const Tensor& from, const Tensor& cache, std::int64_t at);

}  // namespace sfa::flash
