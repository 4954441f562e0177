#include "attention/balance/balance.h"

#include "ops/balance/balance.h"

namespace sfa {

void balance_features(Context& ctx, const Attention& attention, const AttentionState& state, const PackedViews& d,
                      Arena& scratch) {
  const Balancing& b = attention.balancing();
  if (attention.config().balance == 0 || (b.scale == 0 && !ctx.planning)) return;
  const PackedViews rows = packed_views(state.qkv, attention.dims());
  balance_backward(ctx, {rows.q, state.q.indices, b.scale, d.q, b.total, scratch});
  balance_backward(ctx, {rows.k, state.k.indices, b.scale, d.k, b.total, scratch});
}

}  // namespace sfa
