// Plain attention, on CPU and CUDA: the oracle of the faster cores, shared by dense and sfa (whose queries and keys are
// rows with zeros outside their supports). No Tq x Tk matrix is kept; every sum runs in a fixed order, in f32.
//   S = scale * q.k over the visible keys;  P = softmax(S);  out = P V;  lse = logsumexp(S)
//   D_i = sum_c d_out[i,c] out[i,c];  dS = P * (d_out.v - D);  d_q = scale dS K;  d_k = scale dS^T Q;  d_v = P^T d_out
// Sums over the query heads that share a key head are taken here: d_k and d_v have G heads.
#pragma once

#include "attention/attention.h"
#include "core/context.h"

namespace sfa {

struct ReferenceForward {
  Tensor q;       // [B,Tq,H,Dqk], strided
  Tensor k;       // [B,Tk,G,Dqk], strided
  Tensor v;       // [B,Tk,G,Dv], strided
  Ranges ranges;  // first_key, when set, on the GPU
  float scale = 1.0f;
  // Both set = `zero_overlap: mask`: a pair whose supports share no feature is left out, except key == query position.
  Tensor q_indices;  // [B,Tq,H,k_q] u8
  Tensor k_indices;  // [B,Tk,G,k_k] u8
  Tensor out;        // [B,Tq,H,Dv], strided, overwritten; dtype of v
  Tensor lse;        // [B,H,Tq] f32, overwritten
};
/// A row that sees no key gets out = 0 and lse = -inf. Dqk, Dv <= 256; q, k, v and out f32 or bf16.
void attention_reference_forward(Context& ctx, const ReferenceForward& args);

struct ReferenceBackward {
  ReferenceForward forward;  // the forward's arguments, with out and lse as it wrote them
  Tensor d_out;              // [B,Tq,H,Dv], strided
  Tensor d_q, d_k,
      d_v;  // shapes of q, k, v, strided, overwritten. Not masked by supports: sfa calls select_mask_gradient after it.
  Arena* scratch = nullptr;  // takes B*H*Tq f32
};
void attention_reference_backward(Context& ctx, const ReferenceBackward& args);

/// Shared by the variants: copies new tokens [B, n, heads, *] into rows [at, at + n) of a cache tensor [B, capacity,
/// heads, *].
void cache_append(Context& ctx, const Tensor& from, const Tensor& cache, std::int64_t at);

}  // namespace sfa
