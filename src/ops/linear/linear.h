// Linear layer with a fused epilogue. Weights are [O,I], as Hugging Face's nn.Linear has them. Rows are N = B*T.
//   forward:  a = x W^T + b;   y = a, or y = gelu(a) with a kept in `pre`
//   backward: d_x = d_y W  [* gelu'(pre_of_x) when x = gelu(pre_of_x): then d_x is the gradient of pre_of_x]
//   (overwritten)
//             d_weight += d_y^T x;   d_bias += sum over rows d_y;   d_pre_bias += sum over rows d_x (accumulate)
// gelu is the tanh form that GPT-2 was trained with: 0.5 a (1 + tanh(sqrt(2/pi) (a + 0.044715 a^3))) (arXiv
// 1606.08415).
#pragma once

#include "core/context.h"
#include "core/observer.h"
#include "core/tensor.h"

namespace sfa {

struct LinearForward {
  Tensor x;       // [N,I]
  Tensor weight;  // [O,I]
  Tensor bias;    // [O] or empty
  Tensor y;       // [N,O]
  Tensor pre;     // [N,O] for gelu, otherwise empty
};
void linear_forward(Context& ctx, const LinearForward& args);

/// y = gelu(pre), [N,O] both. On a GPU `pre` has been rounded to the type of the activations, which linear_forward's
/// gelu has not: the last bit of y may differ from what it wrote.
void gelu_forward(Context& ctx, const Tensor& pre, const Tensor& y);

struct LinearBackward {
  Tensor d_y;       // [N,O]
  Tensor x;         // [N,I]
  Tensor weight;    // [O,I]
  Tensor pre_of_x;  // [N,I] when x is a gelu output, otherwise empty
  Tensor d_x;       // [N,I] or empty (not wanted)
  Tensor d_weight;  // [O,I] or empty (not wanted), accumulated; dtype of the gradients
  Tensor d_bias;    // [O] or empty, accumulated
  Arena& scratch;
  // [I] or empty, accumulated, with pre_of_x alone: sum over rows of d_x, which is the gradient of the bias of the
  // layer that made pre_of_x, while the rows are at hand
  Tensor d_pre_bias = {};
};
void linear_backward(Context& ctx, const LinearBackward& args);

/// What the two products and the sum of linear_backward do, for observers.
OpWork d_weight_work(const LinearBackward& args);
OpWork d_x_work(const LinearBackward& args);
OpWork d_bias_work(const LinearBackward& args);

}  // namespace sfa
