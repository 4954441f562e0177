// The CUDA side of reference.h: same contracts, Dqk, Dv <= 256.
#pragma once

#include "attention/reference.h"

namespace sfa::cuda_ops {
void attention_reference_forward(Context& ctx, const ReferenceForward& args);
void attention_reference_backward(Context& ctx, const ReferenceBackward& args);
/// As attention_merge in attention.h.
void attention_merge(Context& ctx, const Tensor& out, const Tensor& lse, const Tensor& other_out,
                     const Tensor& other_lse);

}  // namespace sfa::cuda_ops
