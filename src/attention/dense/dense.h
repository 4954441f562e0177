// Dense attention, `type: dense`: Q, K and V as projected; the KV cache holds K and V rows.
#pragma once

#include "attention/attention.h"

namespace sfa {

std::string dense_reference_why_not(const AttentionConfig& config, const AttentionDims& dims, DType dtype);
std::unique_ptr<Attention> make_dense_reference(const AttentionConfig& config, const AttentionDims& dims, DType dtype);

/// What every dense implementation shares: plan, prepare, cache and cost. A core derives from it.
class DenseAttention : public Attention {
 public:
  using Attention::Attention;
  AttentionState plan(Arena& saved, Arena& scratch, std::int64_t B, std::int64_t T) const override;
  void prepare(Context& ctx, AttentionState& state) const override;
  KvCache plan_cache(Arena& arena, std::int64_t B, std::int64_t capacity) const override;
  void append(Context& ctx, const Keys& keys, KvCache& cache) const override;
  [[nodiscard]] AttentionCost cost(std::int64_t T) const override;
};

}  // namespace sfa
