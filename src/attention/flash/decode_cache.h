// What is written to a KV cache on the GPU. V may be held as int8 with one bf16 scale a token and head:
//   scale = max_c |V_c| / 127, rounded up to bf16;  stored_c = round(V_c / scale);  |V_c - scale stored_c| <= scale / 2
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa::flash {

/// Rows [B, n, G, width] to tokens [at, at + n) of a cache of the same type. Any strides.
void append_rows(Context& ctx, const Tensor& from, const Tensor& cache, std::int64_t at);

/// V bf16 [B, n, G, Dv] to tokens [at, at + n) of `values` (u8 holding int8) and `scales` (bf16 [B, capacity, G]).
void append_int8(Context& ctx, const Tensor& v, const Tensor& values, const Tensor& scales, std::int64_t at);

/// The bf16 rows [B, n, G, Dv] that `values` and `scales` stand for.
void expand_int8(Context& ctx, const Tensor& values, const Tensor& scales, const Tensor& v);

}  // namespace sfa::flash
