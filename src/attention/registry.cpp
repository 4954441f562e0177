// The table of attention variants, the choice among them, and what all of them share: ranges, packed rows, forward and
// backward in steps.
#include <algorithm>
#include <cmath>

#include "attention/attention.h"
#include "attention/balance/balance.h"
#include "attention/dense/dense.h"
#include "attention/distill/distill.h"
#include "attention/flash/attention_flash.h"
#include "attention/flash/cpu/flash_cpu.h"
#include "attention/posting/posting_list.h"
#include "attention/ring/ring_attention.h"
#include "attention/sfa/sfa.h"
#include "core/observer.h"
#include "ops/feature_gate/feature_gate.h"
#include "ops/int8_rows/int8_rows.h"
#include "ops/linear/linear.h"
#include "ops/qk_norm_rope/qk_norm_rope.h"

namespace sfa {

// The table: one line a variant and device. `impl: auto` takes the highest priority that serves the case.
const std::vector<AttentionRow>& attention_table() {
  static const std::vector<AttentionRow> table = {
      {"dense", "reference", Device::cpu, 0, dense_reference_why_not, make_dense_reference},
      {"dense", "flash", Device::cpu, 10, dense_flash_cpu_why_not, make_dense_flash_cpu},
      {"dense", "reference", Device::cuda, 0, dense_reference_why_not, make_dense_reference},
      {"dense", "flash", Device::cuda, 10, dense_flash_cuda_why_not, make_dense_flash_cuda, true},
      {"dense", "flash_sm80", Device::cuda, 5, dense_flash_cuda_why_not, make_dense_flash_sm80, true},
      {"sfa", "reference", Device::cpu, 0, sfa_reference_why_not, make_sfa_reference},
      {"sfa", "flash", Device::cpu, 10, sfa_flash_cpu_why_not, make_sfa_flash_cpu},
      {"sfa", "reference", Device::cuda, 0, sfa_reference_why_not, make_sfa_reference},
      {"sfa", "flash", Device::cuda, 10, sfa_flash_cuda_why_not, make_sfa_flash_cuda, true},
      {"sfa", "posting_list", Device::cuda, -1, sfa_posting_list_why_not, make_sfa_posting_list, false, false},
      {"sfa", "flash_sm80", Device::cuda, 5, sfa_flash_cuda_why_not, make_sfa_flash_sm80, true},
  };
  return table;
}

std::unique_ptr<Attention> make_attention(const AttentionConfig& config, const AttentionDims& dims, Device device,
                                          DType dtype) {
  const AttentionRow* best = nullptr;
  std::string reasons, known;
  for (const AttentionRow& row : attention_table()) {
    if (row.type != config.type || row.device != device) continue;
    known += (known.empty() ? "" : ", ") + std::string(row.impl);
    if (config.impl != "auto" && config.impl != row.impl) continue;
    const std::string why = config.kv_cache == "int8" && !row.int8_cache
                                ? "kv_cache: int8 is kept by flash on a GPU alone"
                                : row.why_not(config, dims, dtype);
    if (!why.empty())
      reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", row.impl, why);
    else if (best == nullptr || row.priority > best->priority)
      best = &row;
  }
  require(!known.empty(), "model.attention.type: '{}' is not known; there are dense and sfa", config.type);
  require(best != nullptr || !reasons.empty(),
          "model.attention.impl: there is no '{}' for type '{}' on {}; there is: auto, {}", config.impl, config.type,
          name_of(device), known);
  require(best != nullptr, "model.attention: no implementation of '{}' on {} serves this case ({})", config.type,
          name_of(device), reasons);
  if (config.distill_lambda == 0) return best->make(config, dims, dtype);
  AttentionConfig dense;
  dense.window = config.window;
  dense.score_scale = config.score_scale;
  return make_distilled(best->make(config, dims, dtype), make_attention(dense, dims, device, dtype));
}

float AttentionDims::scale() const {
  return 1.0f / std::sqrt(static_cast<float>(Dqk));
}

float Attention::scale() const {
  return config_.score_scale > 0 ? static_cast<float>(config_.score_scale) : dims_.scale();
}

void Attention::fit(AttentionState& s) const {
  const auto shape = [](Tensor& t, int k) {
    if (!t.empty()) t = Tensor(t.data, t.dtype, t.device, {t.dim(0), t.dim(1), t.dim(2), k});
  };
  shape(s.q.values, active_.q);
  shape(s.q.indices, active_.q);
  shape(s.k.values, active_.k);
  shape(s.k.indices, active_.k);
}

Ranges::Span Ranges::at(std::int64_t b, std::int64_t i, std::int64_t Tk) const {
  const std::int64_t p = i + query_offset;
  const std::int64_t hi = causal ? std::clamp<std::int64_t>(p + 1, 0, Tk) : Tk;
  std::int64_t lo = window > 0 ? std::max<std::int64_t>(0, p + 1 - window) : 0;
  if (!first_key.empty()) lo = std::max<std::int64_t>(lo, first_key.as<std::int32_t>()[b * first_key.dim(1) + i]);
  return {std::min(lo, hi), hi};
}

PackedViews packed_views(const Tensor& qkv, const AttentionDims& d) {
  require(qkv.rank == 3 && qkv.dim(2) == d.row(), "internal error: packed rows of {} in {}", d.row(), qkv);
  return {qkv.slice(2, 0, d.H * d.Dqk).split_last(d.H), qkv.slice(2, d.H * d.Dqk, d.G * d.Dqk).split_last(d.G),
          qkv.slice(2, (d.H + d.G) * d.Dqk, d.G * d.Dv).split_last(d.G)};
}

void Attention::prepare_backward(Context&, const AttentionState&, const Tensor&) const {}
bool Attention::prepare_projected(Context&, const LinearForward&, AttentionState&) const {
  return false;
}
bool Attention::prepare_rotated(Context&, const QkNormRope&, AttentionState&) const {
  return false;
}

namespace {

// Operations by formula: the variant's own, over the batch. Bytes of what is kept, once.
OpWork attention_work(const char* kind, const Attention& attention, const AttentionState& state, bool backward) {
  const Tensor& out = state.out;
  const AttentionCost cost = attention.cost(out.dim(1));
  const double B = static_cast<double>(out.dim(0)),
               kept = cost.saved_bytes_per_token * static_cast<double>(out.dim(0) * out.dim(1));
  return {.kind = fmt::format("attention {}{}", attention.config().type == "dense" ? "" : attention.config().type + " ",
                              kind),
          .shape = fmt::format("{} x {} x {} x {}, {}", out.dim(0), out.dim(1), out.dim(2), attention.dims().Dqk,
                               out.dim(3)),
          .flops = B * (backward ? cost.backward_flops : cost.forward_flops),
          .bytes = (backward ? 2 : 1) * kept};
}

// What is in here and not an op of its own: copies, and selection inside a kernel of the attention's own.
OpWork prepare_work(const Attention& attention, const AttentionState& state) {
  return {.kind = fmt::format("attention {} prepare", attention.config().type),
          .shape = fmt::format("{} x {} x {}", state.qkv.dim(0), state.qkv.dim(1), state.qkv.dim(2)),
          .bytes = bytes_of({state.q.values, state.q.indices, state.k.values, state.k.indices})};
}

// What a cache in 8 bits would give back: V, and keys that are not sparse.
void round_as_cached(Context& ctx, const Keys& keys) {
  if (keys.values.empty()) int8_round(ctx, keys.dense);
  int8_round(ctx, keys.v);
}

Tensor flat_rows(const Tensor& packed) {
  return packed.view({-1, packed.dim(2)});
}

// `kept`: where backward finds the rows before the gate, or empty.
void make_rows(Context& ctx, const RowsFrom& rows, const AttentionState& state, const Tensor& kept) {
  if (rows.projection != nullptr) linear_forward(ctx, *rows.projection);
  if (rows.rotation != nullptr) qk_norm_rope_forward(ctx, *rows.rotation);
  if (!rows.gate.empty()) feature_gate_forward(ctx, {flat_rows(state.qkv), rows.gate, kept});
}

bool prepare_from(Context& ctx, const Attention& attention, AttentionState& state, const RowsFrom& rows) {
  if (!rows.gate.empty()) return false;
  return (rows.projection != nullptr && attention.prepare_projected(ctx, *rows.projection, state)) ||
         (rows.rotation != nullptr && attention.prepare_rotated(ctx, *rows.rotation, state));
}

void prepare_rows(Context& ctx, const Attention& attention, AttentionState& state) {
  const OpScope scope(ctx, [&] { return prepare_work(attention, state); });
  attention.prepare(ctx, state);
}

}  // namespace

void attention_forward(Context& ctx, const Attention& attention, AttentionState& state, const Ranges& ranges,
                       Arena& scratch, const RowsFrom& rows) {
  attention.fit(state);
  // A teacher reads the rows themselves, before anything is selected in place.
  if (attention.teacher() != nullptr || !prepare_from(ctx, attention, state, rows)) {
    make_rows(ctx, rows, state, state.ungated);
    distill_forward(ctx, attention, state, ranges, scratch);
    prepare_rows(ctx, attention, state);
  }
  if (attention.config().as_cached == "int8") round_as_cached(ctx, state.k);
  const OpScope scope(ctx, [&] { return attention_work("forward", attention, state, false); });
  if (ranges.ring != nullptr) return ring_core(ctx, attention, state, ranges, scratch);
  attention.core(ctx, {state.q, state.k, ranges, state.out, state.lse, scratch});
}

Keys KvCache::filled() const {
  Keys view;
  const auto part = [&](const Tensor& t) { return t.empty() ? Tensor{} : t.slice(1, 0, length); };
  view.dense = part(keys.dense);
  view.values = part(keys.values);
  view.indices = part(keys.indices);
  view.mask = part(keys.mask);
  view.v = part(keys.v);
  view.v_scale = part(keys.v_scale);
  view.k_scale = part(keys.k_scale);
  return view;
}

void attention_forward_cached(Context& ctx, const Attention& attention, AttentionState& state, KvCache& cache,
                              Ranges ranges, Arena& scratch, const RowsFrom& rows) {
  require(cache.length + state.out.dim(1) <= cache.capacity,
          "the key/value cache holds {} tokens; {} more do not fit into {}", cache.length, state.out.dim(1),
          cache.capacity);
  ranges.query_offset = cache.length;
  attention.fit(state);
  if (!prepare_from(ctx, attention, state, rows)) {
    make_rows(ctx, rows, state, {});
    prepare_rows(ctx, attention, state);
  }
  attention.append(ctx, state.k, cache);
  const Keys keys = ranges.query_offset == 0 ? state.k : cache.filled();
  attention.core(ctx, {state.q, keys, ranges, state.out, state.lse, scratch});
}

void attention_backward(Context& ctx, const Attention& attention, AttentionState& state, const Ranges& ranges,
                        const Tensor& d_out, const Tensor& d_qkv, Arena& scratch, const GateGradient& gate) {
  distill_towards_teacher(ctx, attention, state, d_out);
  const PackedViews d = packed_views(d_qkv, attention.dims());
  const OpScope scope(ctx, [&] { return attention_work("backward", attention, state, true); });
  if (ranges.ring != nullptr)
    ring_core_backward(ctx, attention, state, ranges, d_out, d, scratch);
  else
    attention.core_backward(ctx, {state.q, state.k, ranges, state.out, state.lse, d_out, d.q, d.k, d.v, scratch});
  balance_features(ctx, attention, state, d, scratch);
  attention.prepare_backward(ctx, state, d_qkv);
  if (!gate.weight.empty())
    feature_gate_backward(ctx, {flat_rows(d_qkv), gate.weight, state.ungated, gate.d_weight, scratch});
}

}  // namespace sfa
