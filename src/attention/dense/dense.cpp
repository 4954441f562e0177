#include "attention/dense/dense.h"

#include "attention/cost.h"
#include "attention/reference.h"

namespace sfa {
namespace {

class DenseReference final : public DenseAttention {
 public:
  using DenseAttention::DenseAttention;

  void core(Context& ctx, const Forward& a) const override {
    attention_reference_forward(ctx, arguments(a.q, a.k, a.ranges, a.out, a.lse));
  }
  void core_backward(Context& ctx, const Backward& a) const override {
    attention_reference_backward(
        ctx, {arguments(a.q, a.k, a.ranges, a.out, a.lse), a.d_out, a.d_q, a.d_k, a.d_v, &a.scratch});
  }

 private:
  [[nodiscard]] ReferenceForward arguments(const Queries& q, const Keys& k, const Ranges& ranges, const Tensor& out,
                                           const Tensor& lse) const {
    return {.q = q.dense,
            .k = k.dense,
            .v = k.v,
            .ranges = ranges,
            .scale = scale(),
            .q_indices = {},
            .k_indices = {},
            .out = out,
            .lse = lse};
  }
};

}  // namespace

AttentionState DenseAttention::plan(Arena& saved, Arena&, std::int64_t B, std::int64_t T) const {
  AttentionState s;
  s.qkv = saved.take(dtype_, {B, T, dims_.row()});
  s.out = saved.take(dtype_, {B, T, dims_.H, dims_.Dv});
  s.lse = saved.take(DType::f32, {B, dims_.H, T});
  return s;
}

void DenseAttention::prepare(Context&, AttentionState& s) const {
  const PackedViews views = packed_views(s.qkv, dims_);
  s.q.dense = views.q;
  s.k.dense = views.k;
  s.k.v = views.v;
}

KvCache DenseAttention::plan_cache(Arena& arena, std::int64_t B, std::int64_t capacity) const {
  KvCache cache;
  cache.capacity = capacity;
  cache.keys.dense = arena.take(dtype_, {B, capacity, dims_.G, dims_.Dqk});
  cache.keys.v = arena.take(dtype_, {B, capacity, dims_.G, dims_.Dv});
  return cache;
}

void DenseAttention::append(Context& ctx, const Keys& keys, KvCache& cache) const {
  cache_append(ctx, keys.dense, cache.keys.dense, cache.length);
  cache_append(ctx, keys.v, cache.keys.v, cache.length);
  cache.length += keys.v.dim(1);
}

AttentionCost DenseAttention::cost(std::int64_t T) const {
  const double pairs = visible_pairs(T, config_.window), element = static_cast<double>(size_of(dtype_));
  const double H = static_cast<double>(dims_.H), G = static_cast<double>(dims_.G), Dqk = static_cast<double>(dims_.Dqk),
               Dv = static_cast<double>(dims_.Dv);
  const bool int8 = config_.int8_cache();
  return {
      .forward_flops = 2 * pairs * H * (Dqk + Dv),
      .backward_flops = 2 * pairs * H * (3 * Dqk + 2 * Dv),
      .saved_bytes_per_token = element * (static_cast<double>(dims_.row()) + H * Dv) + 4 * H,
      .kv_bytes_per_token = G * (int8 ? int8_row_bytes(dims_.Dqk) + int8_row_bytes(dims_.Dv) : element * (Dqk + Dv))};
}

std::string dense_reference_why_not(const AttentionConfig&, const AttentionDims&, DType) {
  return "";
}

std::unique_ptr<Attention> make_dense_reference(const AttentionConfig& config, const AttentionDims& dims, DType dtype) {
  return std::make_unique<DenseReference>(config, dims, dtype);
}

}  // namespace sfa
