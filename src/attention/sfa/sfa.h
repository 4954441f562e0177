// Sparse Feature Attention, `type: sfa` (arXiv 2603.22300): the k largest-magnitude features of each query and key are
// kept (or the k/2 largest rotated pairs, which is our own choice), scores come from shared features alone, V stays
// dense. The KV cache holds k values a key and which features they are (ops/select/support_format.h), and V rows.
#pragma once

#include "attention/attention.h"

namespace sfa {

std::string sfa_reference_why_not(const AttentionConfig& config, const AttentionDims& dims, DType dtype);
std::unique_ptr<Attention> make_sfa_reference(const AttentionConfig& config, const AttentionDims& dims, DType dtype);

/// What every implementation of SFA shares: the supports that a layer keeps, the sparse KV cache and the cost.
class SfaAttention : public Attention {
 public:
  using Attention::Attention;
  KvCache plan_cache(Arena& arena, std::int64_t B, std::int64_t capacity) const override;
  void append(Context& ctx, const Keys& keys, KvCache& cache) const override;
  /// FLOPs count shared features at their expectation for uniform supports, k_q k_k / Dqk a pair (Eq. 7).
  [[nodiscard]] AttentionCost cost(std::int64_t T) const override;

 protected:
  /// The most features that are ever selected, which supports are planned for.
  static ActiveFeatures room(const AttentionConfig& config);
  /// What prepare() selects into a support's tensor.
  static int features_of(const Tensor& support) { return static_cast<int>(support.dim(3)); }
  /// Balancing needs the rows as they were before selection: the packed projection is then saved, and zero-filled rows
  /// have a place of their own.
  [[nodiscard]] bool keeps_rows() const { return config_.balance > 0; }
  /// Takes from `saved` what every implementation keeps for backward: values and indices of Q and K, O and the
  /// log-sum-exp; with a gate the rows before it. The packed projection `qkv` is put beside them: `rows`, taken by the
  /// caller, or what keeps_rows().
  AttentionState plan_supports(const Tensor& rows, Arena& saved, std::int64_t B, std::int64_t T) const;
  /// V for backward: those of the packed projection where that is kept, otherwise from `saved`.
  void plan_values(AttentionState& s, Arena& saved) const;
  /// The same keys with the feature numbers that a mask stands for, if they have one, in scratch.
  static Keys with_indices(Context& ctx, const Keys& keys, Arena& scratch);
  /// Selects queries and keys by config().selection into s.q and s.k; zero-filled rows where `dense` has a place.
  void select_rows(Context& ctx, AttentionState& s) const;
};

}  // namespace sfa
