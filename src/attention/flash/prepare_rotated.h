// Attention::prepare_rotated of sfa's flash: norm, rotation and selection in one kernel.
#pragma once

#include "attention/attention.h"

namespace sfa::flash {

/// False, with nothing done, where rotate_select.h has no kernel, and for one token a sequence whose queries are
/// compressed, which two passes do faster. Queries are left compressed where `state` has a place
/// for that, otherwise as zero-filled rows.
bool prepare_rotated(Context& ctx, const QkNormRope& rotation, const AttentionConfig& config, const AttentionDims& dims,
                     AttentionState& state);

}  // namespace sfa::flash
