// CPU side of swiglu.h.
#pragma once

#include "ops/swiglu/swiglu.h"

namespace sfa::cpu_ops {
void swiglu_forward(Context& ctx, const Tensor& gate_up, const Tensor& y);
void swiglu_backward(Context& ctx, const SwigluBackward& args);
}  // namespace sfa::cpu_ops
