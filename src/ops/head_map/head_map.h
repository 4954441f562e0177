// A linear map of every head of a row, one for all heads or one a head: a product by a block-diagonal matrix. Rows are
// N = B*T; x and y are columns of wider rows where their stride says so.
//   forward:  y_h = W_h x_h                                      (overwritten; columns beside the heads are not
//   touched) backward: d_x_h = W_h^T d_y_h (overwritten);   d_W_h += sum over rows d_y_h x_h^T, shared: over heads too
//   (accumulate)
// Sums run in a fixed order: same bits every run.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

struct HeadMap {
  Tensor x;       // [N, heads*D]
  Tensor weight;  // [D, D] for all heads, or [heads*D, D], head by head
  Tensor y;       // [N, heads*D], not the memory of x
};
void head_map_forward(Context& ctx, const HeadMap& args);

struct HeadMapBackward {
  Tensor d_y, x;    // [N, heads*D]
  Tensor weight;    // as above
  Tensor d_x;       // [N, heads*D], not the memory of d_y
  Tensor d_weight;  // as weight, accumulated; dtype of the gradients
  Arena& scratch;
};
void head_map_backward(Context& ctx, const HeadMapBackward& args);

}  // namespace sfa
