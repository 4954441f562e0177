#include "attention/sfa/sfa.h"

#include <algorithm>

#include "attention/cost.h"
#include "attention/reference.h"
#include "ops/select/select.h"
#include "ops/select/support_mask.h"

namespace sfa {
namespace {

// The definition itself: rows are zero-filled outside their supports and go through plain attention. It saves
// full-width rows and is meant as the oracle, not for memory or speed.
class SfaReference final : public SfaAttention {
 public:
  using SfaAttention::SfaAttention;

  // The rows are selected in place: the packed projection then holds the zero-filled queries and keys.
  AttentionState plan(Arena& saved, Arena&, std::int64_t B, std::int64_t T) const override {
    const Tensor rows = saved.take(dtype_, {B, T, dims_.row()});
    AttentionState s = plan_supports(rows, saved, B, T);
    const PackedViews views = packed_views(rows, dims_);
    s.q.dense = views.q;
    s.k.dense = views.k;
    s.k.v = packed_views(s.qkv, dims_).v;
    return s;
  }

  void prepare(Context& ctx, AttentionState& s) const override { select_rows(ctx, s); }

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
  [[nodiscard]] ReferenceForward arguments(Context& ctx, const Queries& q, const Keys& keys, const Ranges& ranges,
                                           const Tensor& out, const Tensor& lse, Arena& scratch) const {
    const Keys k = with_indices(ctx, keys, scratch);
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

AttentionState SfaAttention::plan_supports(const Tensor& rows, Arena& saved, std::int64_t B, std::int64_t T) const {
  AttentionState s;
  s.qkv = keeps_rows() ? saved.take(dtype_, {B, T, dims_.row()}) : rows;
  if (config_.gate == "feature") s.ungated = saved.take(dtype_, {B * T, (dims_.H + dims_.G) * dims_.Dqk});
  const ActiveFeatures most = room(config_);
  s.q.values = saved.take(dtype_, {B, T, dims_.H, most.q});
  s.q.indices = saved.take(DType::u8, {B, T, dims_.H, most.q});
  s.k.values = saved.take(dtype_, {B, T, dims_.G, most.k});
  s.k.indices = saved.take(DType::u8, {B, T, dims_.G, most.k});
  s.out = saved.take(dtype_, {B, T, dims_.H, dims_.Dv});
  s.lse = saved.take(DType::f32, {B, dims_.H, T});
  return s;
}

void SfaAttention::plan_values(AttentionState& s, Arena& saved) const {
  s.k.v =
      keeps_rows() ? packed_views(s.qkv, dims_).v : saved.take(dtype_, {s.qkv.dim(0), s.qkv.dim(1), dims_.G, dims_.Dv});
}

Keys SfaAttention::with_indices(Context& ctx, const Keys& keys, Arena& scratch) {
  if (keys.mask.empty()) return keys;
  Keys numbered = keys;
  const Tensor& values = keys.values;
  numbered.indices = scratch.take(DType::u8, {values.dim(0), values.dim(1), values.dim(2), values.dim(3)});
  mask_unpack(ctx, keys.mask, numbered.indices);
  numbered.mask = {};
  return numbered;
}

void SfaAttention::select_rows(Context& ctx, AttentionState& s) const {
  const PackedViews rows = packed_views(s.qkv, dims_);
  const bool two_of_four = config_.selection == "topk_2of4", pairs = config_.selection == "topk_pairs";
  select_topk(ctx, {rows.q, features_of(s.q.values), two_of_four, s.q.values, s.q.indices, s.q.dense, pairs});
  select_topk(ctx, {rows.k, features_of(s.k.values), false, s.k.values, s.k.indices, s.k.dense, pairs});
}

KvCache SfaAttention::plan_cache(Arena& arena, std::int64_t B, std::int64_t capacity) const {
  KvCache cache;
  cache.capacity = capacity;
  cache.keys.values = arena.take(dtype_, {B, capacity, dims_.G, config_.k_k});
  const SupportFormat support = support_format(dims_.Dqk, config_.k_k);
  (support.mask ? cache.keys.mask : cache.keys.indices) = arena.take(DType::u8, {B, capacity, dims_.G, support.bytes});
  cache.keys.v = arena.take(dtype_, {B, capacity, dims_.G, dims_.Dv});
  return cache;
}

void SfaAttention::append(Context& ctx, const Keys& keys, KvCache& cache) const {
  cache_append(ctx, keys.values, cache.keys.values, cache.length);
  if (cache.keys.mask.empty())
    cache_append(ctx, keys.indices, cache.keys.indices, cache.length);
  else
    mask_pack(ctx, keys.indices, cache.keys.mask.slice(1, cache.length, keys.indices.dim(1)));
  cache_append(ctx, keys.v, cache.keys.v, cache.length);
  cache.length += keys.v.dim(1);
}

AttentionCost SfaAttention::cost(std::int64_t T) const {
  const double pairs = visible_pairs(T, config_.window), element = static_cast<double>(size_of(dtype_));
  const double H = static_cast<double>(dims_.H), G = static_cast<double>(dims_.G), Dqk = static_cast<double>(dims_.Dqk),
               Dv = static_cast<double>(dims_.Dv), k_q = config_.k_q, k_k = config_.k_k;
  const double shared = k_q * k_k / Dqk;  // features that a pair has in common, uniform supports
  const double values = config_.int8_cache() ? int8_row_bytes(dims_.Dv) : element * Dv;
  const double support = static_cast<double>(support_format(dims_.Dqk, config_.k_k).bytes);
  const ActiveFeatures most = room(config_);
  const double whole_rows = (keeps_rows() ? 1 : 0) + (config_.gate == "feature" ? 1 : 0);
  return {.forward_flops = 2 * pairs * H * (shared + Dv),
          .backward_flops = 2 * pairs * H * (3 * shared + 2 * Dv),
          .saved_bytes_per_token = (H * most.q + G * most.k) * (element + 1) + element * (G + H) * Dv + 4 * H +
                                   whole_rows * element * (H + G) * Dqk,
          .kv_bytes_per_token = G * (k_k * element + support + values)};
}

std::string sfa_reference_why_not(const AttentionConfig&, const AttentionDims& dims, DType) {
  return dims.Dqk > 256 ? fmt::format("heads of {} features are wider than 256", dims.Dqk) : "";
}

std::unique_ptr<Attention> make_sfa_reference(const AttentionConfig& config, const AttentionDims& dims, DType dtype) {
  return std::make_unique<SfaReference>(config, dims, dtype);
}

}  // namespace sfa
