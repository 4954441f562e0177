// Sparse attention that is drawn towards dense attention under the same weights: Eq. 8 of arXiv 2603.22300,
//   L = L_LM + lambda * mean over heads of || O_sfa - stopgrad(O_dense) ||^2,
// here a mean over layers and tokens too, as L_LM is, so that lambda does not depend on the batch. The paper
// leaves open whose dense output is meant; both come from the same query, key and value rows of the running step.
// The student is any variant of the table, the teacher the dense one that `impl: auto` picks. Forward keeps one more
// [B,T,H,Dv] a layer; backward adds to d_out in place before the student's own backward.
#pragma once

#include <memory>

#include "attention/attention.h"

namespace sfa {

/// `student` as make_attention made it, with `teacher` of the same dims, device and dtype beside it.
std::unique_ptr<Attention> make_distilled(std::unique_ptr<Attention> student, std::unique_ptr<Attention> teacher);

/// What attention_forward and attention_backward do for it; nothing when the state has no teacher or, outside of
/// planning, distillation is off.
void distill_forward(Context& ctx, const Attention& attention, AttentionState& state, const Ranges& ranges,
                     Arena& scratch);
void distill_towards_teacher(Context& ctx, const Attention& attention, const AttentionState& state,
                             const Tensor& d_out);

}  // namespace sfa
