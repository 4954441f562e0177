// The CUDA side of classifier.h: same contract. Called by classifier.cpp alone, after its checks.
#pragma once

#include "ops/classifier/classifier.h"

namespace sfa::cuda_ops {
void classifier_loss(Context& ctx, const Classifier& args);
}  // namespace sfa::cuda_ops
