// What the ring adds up in f32 over its hops, and hands back in the activations' type.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

/// to = from, or with `add` to += from. from [B,T,heads,D], to [B,T,heads,n] f32, both contiguous. With indices
/// [B,T,heads,n] u8, contiguous, feature j of `to` is feature indices[j] of `from`; without, n = D.
struct RingCollect {
  Tensor from, indices, to;
  bool add = false;
};
void ring_collect(Context& ctx, const RingCollect& args);

/// to [B,T,heads,D], strided, = from [B,T,heads,n] f32, contiguous, rounded to the type of `to`. With indices feature
/// indices[j] of `to` is feature j of `from`, and the others are zero.
struct RingStore {
  Tensor from, indices, to;
};
void ring_store(Context& ctx, const RingStore& args);

}  // namespace sfa
