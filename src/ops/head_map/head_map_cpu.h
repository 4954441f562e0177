// CPU side of head_map.h: a product a head. Called by head_map.cpp alone, after its checks.
#pragma once

#include "ops/head_map/head_map.h"

namespace sfa::cpu_ops {
void head_map_forward(Context& ctx, const HeadMap& args);
void head_map_backward(Context& ctx, const HeadMapBackward& args);
}  // namespace sfa::cpu_ops
