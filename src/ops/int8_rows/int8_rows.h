// Rows in 8 bits, as a KV cache may keep K and V: int8 with one bf16 scale a row.
//   scale = max_c |x_c| / 127, rounded up to bf16;  stored_c = round(x_c / scale);  |x_c - scale stored_c| <= scale /
//   2, beside a rounding of f32. Rows whose largest |x_c| is below kInt8Smallest count as zeroes, with scale 0.
// Rows are [B, n, heads, D] with D <= 256, strides free but for the last. Deterministic; device and CPU store the same.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

/// Below it a scale and its reciprocal would leave the numbers of f32.
inline constexpr float kInt8Smallest = 0x1p-100f;

/// Every row becomes what its 8 bits stand for, rounded to the dtype of x.
void int8_round(Context& ctx, const Tensor& x);

/// Where a cache keeps them: tokens of one head follow each other in both.
struct Int8Rows {
  Tensor values;  // [B, capacity, heads, D] u8 holding int8
  Tensor scales;  // [B, capacity, heads] bf16
};
/// GPU. The rows of x bf16 to tokens [at, at + n).
void int8_append(Context& ctx, const Tensor& x, const Int8Rows& to, std::int64_t at);
/// GPU. The bf16 rows x that all of `from` stands for.
void int8_expand(Context& ctx, const Int8Rows& from, const Tensor& x);

}  // namespace sfa
