#include "attention/sfa/sfa.h"

#include <algorithm>

#include "attention/cost.h"
#include "attention/reference.h"
#include "ops/select/select.h"

namespace sfa {
namespace {

// The definition itself: rows are zero-filled outside their supports and go through plain attention. It saves
// full-width rows and is meant as the oracle, not for memory or speed.
class SfaReference final : public SfaAttention {
 public:
  using SfaAttention::SfaAttention;

  AttentionState plan(Arena& saved, Arena&, std::int64_t B, std::int64_t T) const override {
    AttentionState s = plan_supports(saved.take(dtype_, {B, T, dims_.row()}), saved, B, T);
    return s;
  }

  // The rows are selected in place: the packed projection then holds the zero-filled queries and keys.
  void prepare(Context& ctx, AttentionState& s) const override {
    const PackedViews views = packed_views(s.qkv, dims_);
    select_rows(ctx, s, views.q, views.k, true);
    s.q.dense = views.q;
    s.k.dense = views.k;
    s.k.v = views.v;
  }

  void core(Context& ctx, const Forward& a) const override {
    ArenaScope scope(a.scratch);
    attention_reference_forward(ctx, arguments(ctx, a.q, a.k, a.ranges, a.out, a.lse, a.scratch));
  }

  void core_backward(Context& ctx, const Backward& a) const override {
    ArenaScope scope(a.scratch);
    attention_reference_backward(
        ctx, {arguments(ctx, a.q, a.k, a.ranges, a.out, a.lse, a.scratch), a.d_out, a.d_q, a.d_k, a.d_v, &a.scratch});
    select_mask_gradient(ctx, a.d_q, a.q.indices);
    select_mask_gradient(ctx, a.d_k, a.k.indices);
  }

 private:
  // Keys that come from a cache have no full-width rows; they are expanded for the time of one call.
  [[nodiscard]] ReferenceForward arguments(Context& ctx, const Queries& q, const Keys& k, const Ranges& ranges,
                                           const Tensor& out, const Tensor& lse, Arena& scratch) const {
    Tensor rows = k.dense;
    if (rows.empty()) {
      rows = scratch.take(dtype_, {k.values.dim(0), k.values.dim(1), dims_.G, dims_.Dqk});
      select_expand(ctx, k.values, k.indices, rows);
    }
    const bool mask = config_.zero_overlap == "mask";
    return {.q = q.dense,
            .k = rows,
            .v = k.v,
            .ranges = ranges,
            .scale = scale(),
            .q_indices = mask ? q.indices : Tensor{},
            .k_indices = mask ? k.indices : Tensor{},
            .out = out,
            .lse = lse};
  }
};

}  // namespace

ActiveFeatures SfaAttention::room(const AttentionConfig& config) {
  return {std::max(config.k_q, config.k_from), std::max(config.k_k, config.k_from)};
}

AttentionState SfaAttention::plan_supports(const Tensor& qkv, Arena& saved, std::int64_t B, std::int64_t T) const {
  AttentionState s;
  s.qkv = qkv;
  const ActiveFeatures most = room(config_);
  s.q.values = saved.take(dtype_, {B, T, dims_.H, most.q});
  s.q.indices = saved.take(DType::u8, {B, T, dims_.H, most.q});
  s.k.values = saved.take(dtype_, {B, T, dims_.G, most.k});
  s.k.indices = saved.take(DType::u8, {B, T, dims_.G, most.k});
  s.out = saved.take(dtype_, {B, T, dims_.H, dims_.Dv});
  s.lse = saved.take(DType::f32, {B, dims_.H, T});
  return s;
}

void SfaAttention::select_rows(Context& ctx, AttentionState& s, const Tensor& q, const Tensor& k,
                               bool zero_fill) const {
  const bool two_of_four = config_.selection == "topk_2of4", pairs = config_.selection == "topk_pairs";
  select_topk(ctx, {q, features_of(s.q.values), two_of_four, s.q.values, s.q.indices, zero_fill ? q : Tensor{}, pairs});
  select_topk(ctx, {k, features_of(s.k.values), false, s.k.values, s.k.indices, zero_fill ? k : Tensor{}, pairs});
}

KvCache SfaAttention::plan_cache(Arena& arena, std::int64_t B, std::int64_t capacity) const {
  KvCache cache;
  cache.capacity = capacity;
  cache.keys.values = arena.take(dtype_, {B, capacity, dims_.G, config_.k_k});
  cache.keys.indices = arena.take(DType::u8, {B, capacity, dims_.G, config_.k_k});
  cache.keys.v = arena.take(dtype_, {B, capacity, dims_.G, dims_.Dv});
  return cache;
}

void SfaAttention::append(Context& ctx, const Keys& keys, KvCache& cache) const {
  cache_append(ctx, keys.values, cache.keys.values, cache.length);
  cache_append(ctx, keys.indices, cache.keys.indices, cache.length);
  cache_append(ctx, keys.v, cache.keys.v, cache.length);
  cache.length += keys.v.dim(1);
}

AttentionCost SfaAttention::cost(std::int64_t T) const {
  const double pairs = visible_pairs(T, config_.window), element = static_cast<double>(size_of(dtype_));
  const double H = static_cast<double>(dims_.H), G = static_cast<double>(dims_.G), Dqk = static_cast<double>(dims_.Dqk),
               Dv = static_cast<double>(dims_.Dv), k_q = config_.k_q, k_k = config_.k_k;
  const double shared = k_q * k_k / Dqk;  // features that a pair has in common, uniform supports
  const double values = config_.int8_cache() ? int8_row_bytes(dims_.Dv) : element * Dv;
  const ActiveFeatures most = room(config_);
  return {.forward_flops = 2 * pairs * H * (shared + Dv),
          .backward_flops = 2 * pairs * H * (3 * shared + 2 * Dv),
          .saved_bytes_per_token = (H * most.q + G * most.k) * (element + 1) + element * (G + H) * Dv + 4 * H,
          .kv_bytes_per_token = G * (k_k * (element + 1) + values)};
}

std::string sfa_reference_why_not(const AttentionConfig&, const AttentionDims& dims, DType) {
  return dims.Dqk > 256 ? fmt::format("heads of {} features are wider than 256", dims.Dqk) : "";
}

std::unique_ptr<Attention> make_sfa_reference(const AttentionConfig& config, const AttentionDims& dims, DType dtype) {
  return std::make_unique<SfaReference>(config, dims, dtype);
}

}  // namespace sfa
