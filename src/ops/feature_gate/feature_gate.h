// A learned factor of every feature of every query and key head, before features are selected. Rows are packed
// [q heads | k heads | v heads]; the gate's columns are the first C of them, those of queries and keys. Both ways in
// place:
//   forward   kept = x where backward follows;   x_c = weight_c * x_c
//   backward  d_weight_c += sum over rows of d_c * kept_c, in a fixed order;   d_c = weight_c * d_c
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

struct FeatureGate {
  Tensor rows;    // [N, row], row >= C
  Tensor weight;  // [C]
  Tensor kept;    // [N, C], overwritten; empty = not wanted
};
void feature_gate_forward(Context& ctx, const FeatureGate& args);

struct FeatureGateBackward {
  Tensor d_rows;    // [N, row], of the gated rows; becomes that of the rows before
  Tensor weight;    // [C]
  Tensor kept;      // [N, C]
  Tensor d_weight;  // [C] f32 or bf16, accumulated
  Arena& scratch;
};
void feature_gate_backward(Context& ctx, const FeatureGateBackward& args);

}  // namespace sfa
