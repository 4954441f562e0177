// Token and position embedding.
//   forward:  out[b,t,:] = wte[tokens[b,t],:] + wpe[first_position + t,:]
//   backward: d_wte[tokens[b,t],:] += d_out[b,t,:];  d_wpe[t,:] += sum over b of d_out[b,t,:]      (accumulate)
// A token outside [0, Vp) is an internal error that the data loader has excluded. Backward adds in a fixed order: same
// bits every run.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

/// tokens [B,T] i32; wte [Vp,C]; wpe [P,C] or empty; out [B,T,C].
void embedding_forward(Context& ctx, const Tensor& tokens, const Tensor& wte, const Tensor& wpe,
                       std::int64_t first_position, const Tensor& out);

struct EmbeddingBackward {
  Tensor tokens;  // [B,T] i32
  Tensor d_out;   // [B,T,C]
  Tensor d_wte;   // [Vp,C], accumulated
  Tensor d_wpe;   // [P,C] or empty, accumulated
  Arena& scratch;
};
void embedding_backward(Context& ctx, const EmbeddingBackward& args);

}  // namespace sfa
