// A linear map of every query and key head behind its rotation (attention.rope_projection), one for all heads of a side
// or one a head. Rows are packed [q heads | k heads | v heads], N = B*T of them.
//   forward:  y_h = W_h x_h for query and key heads; v heads are copied
//   backward: d_x_h = W_h^T d_y_h, v heads copied (overwritten);   d_W_h += sum over rows d_y_h x_h^T   (accumulate)
#pragma once

#include "attention/attention.h"

namespace sfa {

struct RopeProjectionWeights {
  Tensor q, k;  // [D, D], the same for all heads; or [H*D, D] and [G*D, D], head by head
};

struct RopeProjection {
  const AttentionDims& dims;
  RopeProjectionWeights weights;
  Tensor x, y;  // [B,T,row], not the same memory
};
void rope_projection_forward(Context& ctx, const RopeProjection& args);

struct RopeProjectionBackward {
  const AttentionDims& dims;
  RopeProjectionWeights weights, gradients;
  Tensor x, d_y;  // [B,T,row]
  Tensor d_x;     // [B,T,row], not the same memory as d_y
  Arena& scratch;
};
void rope_projection_backward(Context& ctx, const RopeProjectionBackward& args);

}  // namespace sfa
