// Qwen3's treatment of queries and keys between projection and attention: RMS norm over each head's features, then
// rotary position embedding (Su et al., arXiv 2104.09864) in the half-split form that Hugging Face calls rotate_half.
// Rows are packed [q heads | k heads | v heads], N = B*T of them.
//   forward:  rstd[n,h] = 1/sqrt(mean(x^2) + eps);   z = x * rstd * weight   (q_weight for query heads, k_weight for
//             key heads)
//             y[i]       = z[i] cos(p f_i) - z[i + D/2] sin(p f_i)
//             y[i + D/2] = z[i + D/2] cos(p f_i) + z[i] sin(p f_i),           f_i = theta^(-2i/D), i in [0, D/2)
//             p is the token's place in its sequence: first_position + t. v heads are copied.
//   saves:    rstd; x is kept by the caller
//   backward: d_x of the q and k heads (overwritten; may be the same memory as d_y); v heads are copied when it is not
//             d_q_weight, d_k_weight += sums over rows and heads   (accumulate)
// Angles are reduced to one turn in f64 (p f_i has no digits to spare in f32 at long contexts), all else is f32, and
// what is stored is rounded once. Sums over rows run in a fixed order: same bits every run.
#pragma once

#include <vector>

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

struct QkNormRope {
  Tensor x;                   // [B,T,row], row = (H + G) * D + G * Dv
  std::int64_t H = 0, G = 0;  // query and key heads
  std::int64_t D = 0;         // features of a query or key head; even
  Tensor q_weight, k_weight;  // [D]
  float eps = 1e-6f;
  double theta = 1e6;
  std::int64_t first_position = 0;
  Tensor y;     // [B,T,row], may be x itself when no backward follows; or [B,T,(H + G) * D]: no copy of the v heads
  Tensor rstd;  // [B*T, H+G] f32; empty = not wanted
};
void qk_norm_rope_forward(Context& ctx, const QkNormRope& args);

struct QkNormRopeBackward {
  Tensor d_y;  // [B,T,row]
  Tensor x;    // [B,T,row] as the projection wrote it
  std::int64_t H = 0, G = 0, D = 0;
  Tensor q_weight, k_weight;  // [D]
  double theta = 1e6;
  Tensor rstd;                    // [B*T, H+G] f32, as saved
  Tensor d_x;                     // [B,T,row], overwritten; may be d_y
  Tensor d_q_weight, d_k_weight;  // [D], accumulated
  Arena& scratch;
  std::int64_t first_position = 0;
};
void qk_norm_rope_backward(Context& ctx, const QkNormRopeBackward& args);

/// f_i for i in [0, D/2): the angle in radians by which pair i turns from one position to the next.
std::vector<double> rope_frequencies(std::int64_t D, double theta);

}  // namespace sfa
