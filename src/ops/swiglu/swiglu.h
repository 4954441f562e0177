// The gated activation of Qwen3's MLP (Shazeer, arXiv 2002.05202). Rows are N = B*T; gate and up come side by side from
// one product.
//   forward:  y = silu(gate) * up,   silu(a) = a / (1 + exp(-a))
//   backward: d_gate = d_y * up * silu'(gate);   d_up = d_y * silu(gate)      (overwritten)
//             y, when asked for, is computed once more from gate_up on the way, the same bits as in the forward: the
//             weight gradient of the layer behind needs it, and it need not be kept between forward and backward
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

/// gate_up [N,2F]: gate in columns [0,F), up in [F,2F); y [N,F].
void swiglu_forward(Context& ctx, const Tensor& gate_up, const Tensor& y);

struct SwigluBackward {
  Tensor gate_up;    // [N,2F], as saved
  Tensor d_y;        // [N,F]
  Tensor d_gate_up;  // [N,2F], overwritten; may be gate_up
  Tensor y = {};     // [N,F] or empty: the activation once more; memory of its own
};
void swiglu_backward(Context& ctx, const SwigluBackward& args);

}  // namespace sfa
