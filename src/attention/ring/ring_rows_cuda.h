// The CUDA side of ring_rows.h: same contracts.
#pragma once

#include "attention/ring/ring_rows.h"

namespace sfa::cuda_ops {
void ring_collect(Context& ctx, const RingCollect& args);
void ring_store(Context& ctx, const RingStore& args);
}  // namespace sfa::cuda_ops
