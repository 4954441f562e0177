// The CUDA side of guard.h: same contracts. Called by guard.cpp alone, after its checks.
#pragma once

#include "optim/guard.h"

namespace sfa::cuda_ops {
void decide_step(Context& ctx, const StepDecision& args);
void locate_gradient(Context& ctx, const LocateGradient& args);
void note_gradients(Context& ctx, const LocateGradient& args);
}  // namespace sfa::cuda_ops
