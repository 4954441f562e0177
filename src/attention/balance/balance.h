// The load balance of the features that selection keeps (model.attention.balance; ops/balance has the formula):
//   L += LAMBDA * D sum_j f_j p_j   for every layer, head and side (queries, keys),
// over the rows of a micro-batch, which count as many times as its tokens do in the loss. Gradients reach kept and
// dropped features alike, so backward needs the rows as they were before selection: SFA keeps the packed projection
// then.
#pragma once

#include "attention/attention.h"

namespace sfa {

/// What attention_backward does for it: adds to d.q and d.k; nothing without config().balance or, outside of planning,
/// when balancing is off.
void balance_features(Context& ctx, const Attention& attention, const AttentionState& state, const PackedViews& d,
                      Arena& scratch);

}  // namespace sfa
