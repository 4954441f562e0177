// Sums that stay on the device.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

/// total += sum of x [n] f32, in double and in a fixed order. total: [1] i64 whose bits are a double.
void sum_add(Context& ctx, const Tensor& x, const Tensor& total);

}  // namespace sfa
