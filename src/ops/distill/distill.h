// The step back of a squared distance between two attention outputs: Eq. 8 of arXiv 2603.22300, whose teacher is held
// fixed (stop-gradient). Rows are N = B*T tokens of W = H*Dv features.
//   rows[n]  = sum over the row of (out - teacher)^2                      (overwritten)
//   d_out   += scale * (out - teacher),  scale = 2 * weight of a token's and head's squared distance
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

struct DistillBackward {
  Tensor out, teacher;  // [N,W]
  float scale = 0;
  Tensor d_out;  // [N,W], added to in place
  Tensor rows;   // [N] f32
};
void distill_backward(Context& ctx, const DistillBackward& args);

}  // namespace sfa
