// The load balance of the features that rows keep, as mixtures of experts have it of their experts (Switch
// Transformers, arXiv 2101.03961, Eq. 4-6), and its step back. For each head, over its R = B*T rows x of D features:
//   L = D sum_j f_j p_j,   f_j = rows whose support holds j / (R k),   p_j = mean over rows of |x_j| / s,   s = sum
//   |x|.
// 1 where all features are kept alike, and the larger the fewer features take the load. f is held fixed; one row's part
// of R L is D m with m = sum_j f_j |x_j| / s, so that
//   total += sum over rows and heads of D m
//   d_x_j += scale * D * sign(x_j) / s * (f_j - m),   scale = weight of one row's part
// for every feature j, kept or not. A row of zeros has no shares: it adds nothing.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

struct BalanceBackward {
  Tensor x;        // [B,T,heads,D], strided: the rows before selection
  Tensor indices;  // [B,T,heads,k] u8: what each row kept
  float scale = 0;
  Tensor d_x;    // [B,T,heads,D], strided, added to in place
  Tensor total;  // [1] i64, the bits of a double, added to in a fixed order; empty = not wanted
  Arena& scratch;
};
void balance_backward(Context& ctx, const BalanceBackward& args);

}  // namespace sfa
