// Attention over a sequence that several ranks share (key_ring.h), for any variant of the table: keys and values travel
// round the ring (Ring Attention, Liu et al., arXiv 2310.01889), one hop while those of the hop before are attended to.
//
// Every pair of a query chunk and a key chunk that sees anything is one call of `core` with the chunks' distance as
// query_offset, joined by `merge`; of one sequence without a window all pairs of a hop are one call, both chunks of
// a rank being one behind the other. What travels is what a KV cache holds: dense rows, or sfa's values and indices;
// and V. In backward the gradients of keys and values travel behind their keys, adding up, until they are home; sfa's
// those of the kept features alone. Sums over hops (outputs, gradients) are f32 whatever the activations are, so that a
// bf16 result is rounded twice, in what a call of `core` leaves and at the end, however many ranks there are. (A CPU
// that rounds activations as bf16 does, train.dtype: bf16, rounds at every merge.)
#pragma once

#include "attention/attention.h"

namespace sfa {

/// attention.core on state.q, state.k and state.out, [2B, c] rows each, for a `ranges` with a ring. Takes scratch.
void ring_core(Context& ctx, const Attention& attention, AttentionState& state, const Ranges& ranges, Arena& scratch);
/// attention.core_backward, d_q, d_k and d_v being views of the packed gradient.
void ring_core_backward(Context& ctx, const Attention& attention, AttentionState& state, const Ranges& ranges,
                        const Tensor& d_out, const PackedViews& d, Arena& scratch);

/// Bytes that a rank sends in one hop of one layer, its keys and values being `tokens` of the sequence.
struct RingBytes {
  double forward = 0;             // keys and values: N-1 hops forward and again backward
  double backward_gradients = 0;  // their gradients: N hops
};
RingBytes ring_bytes_a_hop(const AttentionConfig& config, const AttentionDims& dims, DType dtype, double tokens);

}  // namespace sfa
