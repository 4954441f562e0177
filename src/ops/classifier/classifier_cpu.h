// CPU side of classifier.h.
#pragma once

#include "ops/classifier/classifier.h"

namespace sfa::cpu_ops {
void classifier_loss(Context& ctx, const Classifier& args);
}  // namespace sfa::cpu_ops
