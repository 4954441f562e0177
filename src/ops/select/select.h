// Selection of features: Topk_k of arXiv 2603.22300, Eq. 3-4, row by row.
//   topk:       the k entries of largest |x|, ties to the lowest index.
//   topk_2of4:  greedily by (|x| descending, index ascending), skipping an entry whose group of four neighbours already
//   has two;
//               the structure that 2:4 sparse tensor cores want. Gives k entries whenever k <= D/2 and D % 4 == 0.
//   topk_pairs: the k/2 pairs (i, i + D/2) of largest x_i^2 + x_{i+D/2}^2, ties to the lowest i, k and D even. These
//   are the
//               pairs that rotary position embedding turns (half-split form): a rotation leaves the norm of a pair as
//               it is, so that a token's support does not depend on its position. The norm is computed in f32 as
//               fma(x_i, x_i, x_{i+D/2} * x_{i+D/2}), everywhere alike.
// Values keep sign and magnitude; indices come out ascending. NaN counts as the largest magnitude, so that it is not
// hidden. Selection is made on the stored (rounded) values, so that CPU and GPU choose alike.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

struct Select {
  Tensor x;  // [B,T,heads,D], strided
  std::int64_t k = 0;
  bool two_of_four = false;
  Tensor values;   // [B,T,heads,k] dtype of x
  Tensor indices;  // [B,T,heads,k] u8
  Tensor dense;    // [B,T,heads,D] dtype of x, zero outside the support; strided allowed; may be x itself; empty = not
                   // wanted
  bool pairs = false;  // not together with two_of_four
};
void select_topk(Context& ctx, const Select& args);

/// Zeroes d_x outside the support, in place: Eq. 6. d_x [B,T,heads,D] strided, indices [B,T,heads,k] u8.
void select_mask_gradient(Context& ctx, const Tensor& d_x, const Tensor& indices);

/// dense = zeros, then dense[..., indices] = values: the rows that a sparse KV cache stands for. dense [B,T,heads,D]
/// strided; values [B,T,heads,k] and indices u8, contiguous in their last two dimensions on the CPU, strided on a GPU.
void select_expand(Context& ctx, const Tensor& values, const Tensor& indices, const Tensor& dense);

}  // namespace sfa
