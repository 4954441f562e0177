// Sums over rows that come out the same every run: partial sums of fixed row ranges, then one fold in a fixed order.
// For .cu files only.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/context.h"
#include "cuda/state.h"

namespace sfa {

/// to [columns] (f32 or bf16) += sum over p < count of partials[p * stride + c].
void fold_partials(CudaState& state, const float* partials, int count, std::int64_t stride, const Tensor& to,
                   std::int64_t columns);

/// to [O] (f32 or bf16) += sum over rows of d [N,O] (f32 or bf16, contiguous).
void add_column_sums(Context& ctx, const Tensor& d, const Tensor& to, Arena& scratch);

}  // namespace sfa
