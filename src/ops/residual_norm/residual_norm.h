// Residual addition fused with the normalisation that follows it. Rows are N = B*T.
//   forward:  r = residual + x                       (x empty: r = residual, nothing is written to residual_out)
//             layer norm: y = (r - mean) * rstd * weight + bias,  rstd = 1/sqrt(var + eps), biased variance
//             (Ba et al., arXiv 1607.06450)
//             RMS norm, where bias, mean and d_bias are empty: y = r * rstd * weight,  rstd = 1/sqrt(mean(r^2) + eps)
//             (Zhang and Sennrich, arXiv 1910.07467)
//   saves:    residual_out, rstd, and of layer norm mean
//   backward: d_residual = d_residual_out + d(norm)/dr;   it is the gradient of x and of residual alike (overwritten)
//             d_weight += sum over rows d_y * (r - mean) * rstd;   d_bias += sum over rows d_y            (accumulate)
//             d_x_bias += sum over rows d_residual: the bias gradient of the linear layer that made x, while the rows
//             are at hand
// Sums over rows run in a fixed order: same bits every run.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

struct ResidualNormForward {
  Tensor residual;      // [N,C]
  Tensor x;             // [N,C] or empty
  Tensor weight, bias;  // [C]; bias empty: RMS norm
  float eps = 1e-5f;
  Tensor residual_out;  // [N,C]; empty when x is
  Tensor y;             // [N,C]
  Tensor mean, rstd;    // [N] f32; mean empty for RMS norm
};
void residual_norm_forward(Context& ctx, const ResidualNormForward& args);

struct ResidualNormBackward {
  Tensor d_y;               // [N,C]
  Tensor d_residual_out;    // [N,C] or empty (treated as zero)
  Tensor residual_out;      // [N,C], as saved
  Tensor weight;            // [C]
  Tensor mean, rstd;        // [N] f32; mean empty for RMS norm
  Tensor d_residual;        // [N,C], overwritten; may be the same memory as d_residual_out
  Tensor d_weight, d_bias;  // [C], accumulated; d_bias empty for RMS norm
  Arena& scratch;
  Tensor d_x_bias = {};  // [C] or empty, accumulated
};
void residual_norm_backward(Context& ctx, const ResidualNormBackward& args);

}  // namespace sfa
