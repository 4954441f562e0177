// CUDA side of feature_gate.h.
#pragma once

#include "ops/feature_gate/feature_gate.h"

namespace sfa::cuda_ops {
void feature_gate_forward(Context& ctx, const FeatureGate& args);
void feature_gate_backward(Context& ctx, const FeatureGateBackward& args);
}  // namespace sfa::cuda_ops
