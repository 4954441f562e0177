// Cuts one attention problem into units, hands them to threads, and takes their workspaces from the scratch arena. What
// a unit is depends on shapes alone, and so do the bits of the result.
#pragma once

#include "attention/flash/cpu/kernels.h"
#include "core/arena.h"

namespace sfa::flash_cpu {

/// Writes p.out and p.lse. With `planning` it takes the same scratch and returns. What is taken never shrinks when Tq
/// or Tk grow, so that a plan for the longest chunk at the fullest cache serves every other call.
void forward(const Problem& p, Arena& scratch, bool planning);
/// Writes p.d_q, p.d_k and p.d_v.
void backward(const Problem& p, Arena& scratch, bool planning);

}  // namespace sfa::flash_cpu
