// Attention behind one interface and one table (registry.cpp).
//
// Three steps, so that one mechanism serves training, decoding and a ring of GPUs:
//   prepare   after position encoding: Q, K, V as the projection left them -> what the core reads. Owns the selection
//   of features
//             (SFA: Eq. 3-4 of arXiv 2603.22300), its own parameters, and the format of the KV cache.
//   core      tiles: O = softmax(scale * Q K^T over the visible keys) V and the log-sum-exp of every row.
//   merge     joins partial results over disjoint sets of keys by their log-sum-exp.
// Gradients run back through core_backward and prepare_backward. d_qk and d_v are separate numbers everywhere.
//
// SFA semantics: top-k by |x| (`selection` has other rules) per token and head on Q and on K, the stored values keep
// sign and magnitude, scale 1/sqrt(Dqk) with the full Dqk (or `score_scale`), ties go to the lowest index, the gradient
// is masked by the
// support (Eq. 6), and a pair without a common feature scores 0 and stays in the softmax (`zero_overlap: score`) or is
// masked out except on the diagonal (`zero_overlap: mask`).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/arena.h"
#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

struct LinearForward;
struct QkNormRope;
class KeyRing;

/// `model.attention` of the configuration, validated.
struct AttentionConfig {
  std::string type = "dense";  // dense | sfa
  std::string impl = "auto";   // auto | reference | flash | ...: a row of the table
  int k_q = 0, k_k = 0;        // active features a query / key row (sfa)
  // topk | topk_2of4 (queries: at most two of four neighbouring features) | topk_pairs (whole rotated pairs)
  std::string selection = "topk";
  std::string zero_overlap = "score";  // score | mask
  std::int64_t window = 0;             // keys a query sees, itself included; 0 = all before it
  std::string kv_cache = "full";       // full | int8: what the KV cache holds (int8: flash on a GPU)
  double score_scale = 0;              // factor of every q.k; 0 = 1/sqrt(Dqk)
  std::string gate = "none";           // none | feature: a learned factor of every feature before selection (sfa)
  // No part of what the model is:
  std::string as_cached = "full";  // full | int8: evaluation reads keys and values as such a cache holds them
  double distill_lambda = 0;       // train.distill.lambda: 0 = no teacher
  double balance = 0;              // sfa: weight of the load balance of kept features; 0 = none
  int k_from = 0;                  // train.k_anneal.from: supports have room for as many features, if that is more
  [[nodiscard]] bool int8_cache() const { return kv_cache == "int8" || as_cached == "int8"; }
};

/// Sizes that every layer of a model shares.
struct AttentionDims {
  std::int64_t H = 0, G = 0;     // query heads, key/value heads; H % G == 0, head h reads kv head h / (H/G)
  std::int64_t Dqk = 0, Dv = 0;  // features of a query or key head, of a value head
  /// Width of a packed row [q heads | k heads | v heads].
  [[nodiscard]] std::int64_t row() const { return (H + G) * Dqk + G * Dv; }
  [[nodiscard]] float scale() const;  // 1/sqrt(Dqk)
};

/// Which keys a query row sees. Row i has position p = i + query_offset relative to key 0 and sees keys [lo, hi):
///   hi = causal ? clamp(p + 1, 0, Tk) : Tk
///   lo = max(0, window > 0 ? p + 1 - window : 0, first_key ? first_key[b, i] : 0)
/// A row that sees no key gets O = 0 and log-sum-exp -inf.
/// With a ring the rows are those of ring/key_ring.h, and position and window are those in the whole sequence.
struct Ranges {
  bool causal = true;
  std::int64_t query_offset = 0;
  std::int64_t window = 0;
  // Optional [B, Tq] i32, non-decreasing along Tq: first key of the row's document. With a ring [3N, B, Tq]: entry s
  // < 2N counts from the first key of chunk s, from 0 to the chunk's length; entry 2N + r the keys before it in both
  // chunks of rank r.
  Tensor first_key;
  KeyRing* ring = nullptr;  // the other keys are on other ranks; for attention_forward and attention_backward

  struct Span {
    std::int64_t lo, hi;
  };
  /// The keys that row i of batch entry b sees; CPU tensors only.
  [[nodiscard]] Span at(std::int64_t b, std::int64_t i, std::int64_t Tk) const;
};

/// Prepared queries. Which tensors are set is the variant's business; unset ones are empty.
struct Queries {
  Tensor dense;                 // [B, Tq, H, Dqk]; sfa: zero outside the support
  Tensor values, indices;       // sfa: [B, Tq, H, k_q] activations' dtype / u8, ascending indices
  Tensor compressed, metadata;  // sfa flash: operand of the 2:4 sparse product
};

/// Prepared keys and values: what a KV cache holds and a ring of GPUs passes on.
struct Keys {
  Tensor dense;            // [B, Tk, G, Dqk]; sfa: zero outside the support
  Tensor values, indices;  // sfa: [B, Tk, G, k_k]
  Tensor mask;             // sfa, a cache alone, instead of indices where it is smaller (ops/select/support_format.h)
  Tensor v;                // [B, Tk, G, Dv]
  // A cache in 8 bits (ops/int8_rows): [B, Tk, G] bf16; `v`, or `dense` too, is then u8 holding int8.
  Tensor v_scale, k_scale;
};

/// What one layer's attention keeps from forward to backward, planned once.
struct AttentionState {
  Tensor qkv;  // [B, T, row]: the projection writes it (after position encoding); saved or scratch as the variant needs
  Queries q;
  Keys k;
  Tensor out;      // [B, T, H, Dv], saved
  Tensor lse;      // [B, H, T] f32, natural logarithm, saved
  Tensor ungated;  // gate, otherwise empty: [B*T, (H+G)*Dqk], queries and keys before it, saved
  // Distillation (distill/distill.h), otherwise empty: output of the dense teacher, saved; its log-sum-exp and [B*T]
  // squared distances, scratch.
  Tensor teacher_out, teacher_lse, distance;
};

/// What distillation adds to one micro-step (distill/distill.h).
struct Distillation {
  float scale = 0;  // d_out += scale * (out - teacher_out); 0 = off
  Tensor total;     // [1] i64, the bits of a double: squared distances of all layers are added
};

/// What the load balance of kept features adds to one micro-step (balance/balance.h).
struct Balancing {
  float scale = 0;  // weight of one row's part of a head's balance; 0 = off
  Tensor total;     // [1] i64, the bits of a double: the parts of all layers, heads, sides and rows are added; or empty
};

/// A KV cache of one layer, for `capacity` tokens a sequence.
struct KvCache {
  Keys keys;
  std::int64_t capacity = 0;
  std::int64_t length = 0;  // tokens in it

  /// The tokens in it as a view.
  [[nodiscard]] Keys filled() const;
};

/// Features that a query and a key row keep. 0 and 0 where nothing is selected.
struct ActiveFeatures {
  int q = 0, k = 0;
  bool operator==(const ActiveFeatures&) const = default;
};

/// Work and storage of a variant, for `sfa plan`, MFU and the report. FLOPs count a multiply-add as two.
struct AttentionCost {
  double forward_flops = 0;  // of the core, over B = 1 and T tokens, causal pairs only
  double backward_flops = 0;
  /// The same, zeros included that the implementation multiplies; 0 = as above.
  double executed_forward_flops = 0, executed_backward_flops = 0;
  double saved_bytes_per_token = 0;  // activations kept for backward, one layer
  double kv_bytes_per_token = 0;     // KV cache, one layer
};

class Attention {
 public:
  Attention(AttentionConfig config, AttentionDims dims, DType dtype)
      : config_(std::move(config)), dims_(dims), dtype_(dtype), active_{config_.k_q, config_.k_k} {}
  virtual ~Attention() = default;

  /// Plans one layer for a step of B x T tokens. What backward needs comes from `saved`; what only lives inside one
  /// layer's forward or backward comes from `scratch` (taken anew, in the same order, for every layer).
  virtual AttentionState plan(Arena& saved, Arena& scratch, std::int64_t B, std::int64_t T) const = 0;

  /// state.qkv -> state.q, state.k. As many features are selected as the supports' tensors there have (fit()).
  virtual void prepare(Context& ctx, AttentionState& state) const = 0;
  /// The op that makes the rows and `prepare` in one pass: leaves in state.q and state.k what the op into state.qkv and
  /// then prepare() leave there; state.qkv itself is the variant's to use. False, with nothing done, where there is no
  /// such pass.
  virtual bool prepare_projected(Context& ctx, const LinearForward& projection, AttentionState& state) const;
  virtual bool prepare_rotated(Context& ctx, const QkNormRope& rotation, AttentionState& state) const;

  struct Forward {
    const Queries& q;
    const Keys& k;
    const Ranges& ranges;
    Tensor out;  // [B, Tq, H, Dv], strided allowed, overwritten
    Tensor lse;  // [B, H, Tq] f32, overwritten
    Arena& scratch;
  };
  virtual void core(Context& ctx, const Forward& args) const = 0;

  struct Backward {
    const Queries& q;
    const Keys& k;
    const Ranges& ranges;
    Tensor out, lse, d_out;  // as core wrote them; gradient of out
    Tensor d_q, d_k, d_v;    // [B, Tq, H, Dqk], [B, Tk, G, Dqk], [B, Tk, G, Dv]: overwritten
    Arena& scratch;
  };
  /// Gradients with respect to the prepared q, k and v; sfa writes exact zeros outside the supports.
  virtual void core_backward(Context& ctx, const Backward& args) const = 0;
  /// Gradient with respect to state.qkv, in place in the same layout: what core_backward wrote into views of d_qkv is
  /// turned into the gradient of the unprepared rows. For dense and plain sfa nothing is left to do.
  virtual void prepare_backward(Context& ctx, const AttentionState& state, const Tensor& d_qkv) const;

  virtual KvCache plan_cache(Arena& arena, std::int64_t B, std::int64_t capacity) const = 0;
  /// Appends prepared keys of new tokens at cache.length and advances it.
  virtual void append(Context& ctx, const Keys& keys, KvCache& cache) const = 0;

  [[nodiscard]] virtual AttentionCost cost(std::int64_t T) const = 0;

  /// The dense attention that a distilled one is drawn to, or null.
  [[nodiscard]] virtual const Attention* teacher() const { return nullptr; }
  void distill(const Distillation& distillation) { distillation_ = distillation; }
  [[nodiscard]] const Distillation& distillation() const { return distillation_; }
  void balance(const Balancing& balancing) { balancing_ = balancing; }
  [[nodiscard]] const Balancing& balancing() const { return balancing_; }

  /// From now on attention_forward selects so many features, at most as many as were planned for (config().k_from).
  /// cost() and caches stay those of config().
  void activate(ActiveFeatures features) { active_ = features; }
  [[nodiscard]] ActiveFeatures active() const { return active_; }
  /// Shapes the supports of a state, which may be shared with a layer of another k, as views of what was planned.
  void fit(AttentionState& state) const;

  /// The factor of every q.k.
  [[nodiscard]] float scale() const;
  [[nodiscard]] const AttentionConfig& config() const { return config_; }
  [[nodiscard]] const AttentionDims& dims() const { return dims_; }
  [[nodiscard]] DType dtype() const { return dtype_; }

 protected:
  AttentionConfig config_;
  AttentionDims dims_;
  DType dtype_;
  ActiveFeatures active_;
  Distillation distillation_;
  Balancing balancing_;
};

/// The last op before attention, whose y is state.qkv, where the caller leaves it to attention to run it (together with
/// prepare, when the variant can). At most one of the two is set; none: the rows are there. `gate` [(H+G)*Dqk] or empty
/// multiplies queries and keys then (ops/feature_gate).
struct RowsFrom {
  const LinearForward* projection = nullptr;
  const QkNormRope* rotation = nullptr;
  Tensor gate = {};
};

/// The gate of the forward pass and its gradient, which accumulates; both empty without one.
struct GateGradient {
  Tensor weight, d_weight;  // [(H+G)*Dqk]
};

/// prepare + core on one layer's state: the whole of causal self-attention.
void attention_forward(Context& ctx, const Attention& attention, AttentionState& state, const Ranges& ranges,
                       Arena& scratch, const RowsFrom& rows = {});
/// The same for new tokens after those in `cache`: their keys are appended first, and ranges.query_offset is set to
/// their place. Into an empty cache they attend to each other as they were prepared, without reading it.
void attention_forward_cached(Context& ctx, const Attention& attention, AttentionState& state, KvCache& cache,
                              Ranges ranges, Arena& scratch, const RowsFrom& rows = {});
/// Writes d_qkv [B, T, row] from d_out [B, T, H, Dv], to which distillation adds its part first. The load balance of
/// kept features adds its part to d_qkv. With a gate d_qkv is the gradient of the rows before it.
void attention_backward(Context& ctx, const Attention& attention, AttentionState& state, const Ranges& ranges,
                        const Tensor& d_out, const Tensor& d_qkv, Arena& scratch, const GateGradient& gate = {});

/// (out, lse) becomes the attention over the union of the keys behind (out, lse) and (other_out, other_lse), which must
/// be disjoint. out, other_out: [B, T, H, Dv], of one type or out f32; lse, other_lse: [B, H, T] f32, strided allowed.
void attention_merge(Context& ctx, const Tensor& out, const Tensor& lse, const Tensor& other_out,
                     const Tensor& other_lse);

/// One row of the table: a variant of one type for one device.
struct AttentionRow {
  std::string_view type, impl;
  Device device;
  int priority;  // `impl: auto` takes the highest among the rows that support the case
  /// Empty when the row can serve the case, otherwise a sentence that says why not.
  std::string (*why_not)(const AttentionConfig&, const AttentionDims&, DType);
  std::unique_ptr<Attention> (*make)(const AttentionConfig&, const AttentionDims&, DType);
  bool int8_cache = false;  // serves kv_cache: int8
  bool trains = true;       // has a backward pass
};
const std::vector<AttentionRow>& attention_table();

/// Throws Error naming what exists when no row serves the case.
std::unique_ptr<Attention> make_attention(const AttentionConfig& config, const AttentionDims& dims, Device device,
                                          DType dtype);

/// The three column ranges of a packed [B, T, row] buffer, as [B, T, heads, features] views.
struct PackedViews {
  Tensor q, k, v;
};
PackedViews packed_views(const Tensor& qkv, const AttentionDims& dims);

}  // namespace sfa
