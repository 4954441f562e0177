// From the numbers of kept features to masks of one bit a feature and back (support_format.h): what a KV cache writes,
// and what is made of it for those that read numbers.
#pragma once

#include "core/context.h"
#include "core/tensor.h"
#include "ops/select/support_format.h"

namespace sfa {

/// mask = the features that `numbers` names. numbers [B,T,heads,k] u8, distinct; mask [B,T,heads,bytes] u8, rows of
/// whole words, each at a multiple of 4 bytes; strides free but for the last.
void mask_pack(Context& ctx, const Tensor& numbers, const Tensor& mask);

/// numbers = the first k features of each mask, ascending; zeros behind them where a mask has fewer.
void mask_unpack(Context& ctx, const Tensor& mask, const Tensor& numbers);

}  // namespace sfa
