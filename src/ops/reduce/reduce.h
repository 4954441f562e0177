// Sums that stay on the device.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

/// total += sum of x [n] f32, in double and in a fixed order. total: [1] i64 whose bits are a double.
void sum_add(Context& ctx, const Tensor& x, const Tensor& total);

/// to [n] f32 += from [n] (f32 or bf16; on the CPU f32).
void add_to(Context& ctx, const Tensor& from, const Tensor& to);

}  // namespace sfa
