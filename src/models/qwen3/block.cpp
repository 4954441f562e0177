#include "models/qwen3/block.h"

#include "ops/head_map/head_map.h"
#include "ops/linear/linear.h"
#include "ops/qk_norm_rope/qk_norm_rope.h"
#include "ops/residual_norm/residual_norm.h"
#include "ops/swiglu/swiglu.h"

namespace sfa {

void qwen3_norm_forward(Context& ctx, const ModelConfig& config, const Tensor& weight, const Tensor& residual,
                        const Tensor& branch, const Qwen3::Norm& norm) {
  residual_norm_forward(ctx, {.residual = residual,
                              .x = branch,
                              .weight = weight,
                              .bias = {},
                              .eps = static_cast<float>(config.rms_norm_eps),
                              .residual_out = branch.empty() ? Tensor{} : norm.residual,
                              .y = norm.y,
                              .mean = {},
                              .rstd = norm.rstd});
}

void qwen3_norm_backward(Context& ctx, const Qwen3NormBackward& args, Arena& scratch) {
  residual_norm_backward(ctx, {.d_y = args.d_y,
                               .d_residual_out = args.d_residual_out,
                               .residual_out = args.norm.residual,
                               .weight = args.weight,
                               .mean = {},
                               .rstd = args.norm.rstd,
                               .d_residual = args.d_residual,
                               .d_weight = args.d_weight,
                               .d_bias = {},
                               .scratch = scratch});
}

namespace {

void linear(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& y) {
  linear_forward(ctx, {x, weight, Tensor{}, y, Tensor{}});
}

// d_x and d_weight; either may be left out.
void d_linear(Context& ctx, const Tensor& d_y, const Tensor& x, const Tensor& weight, const Tensor& d_x,
              const Tensor& d_weight, Arena& scratch) {
  linear_backward(ctx, {d_y, x, weight, Tensor{}, d_x, d_weight, Tensor{}, scratch});
}

// Rows as projected -> normed and rotated. rstd is for backward, which leaves it out when it makes the rows again.
QkNormRope norm_and_rotation(const Qwen3BlockContext& block, const Tensor& x, const Tensor& y, const Tensor& rstd,
                             std::int64_t first_position) {
  const AttentionDims& d = block.attention.dims();
  return {.x = x,
          .H = d.H,
          .G = d.G,
          .D = d.Dqk,
          .q_weight = block.weights.q_norm,
          .k_weight = block.weights.k_norm,
          .eps = static_cast<float>(block.config.rms_norm_eps),
          .theta = block.config.rope_theta,
          .first_position = first_position,
          .y = y,
          .rstd = rstd};
}

void norm_and_rotate(Context& ctx, const Qwen3BlockContext& block, const KeyRing* ring, const Tensor& x,
                     const Tensor& y, const Tensor& rstd) {
  for (const RowRun& run : RowRuns(ring, x.dim(0), x.dim(1)))
    qk_norm_rope_forward(ctx, norm_and_rotation(block, run.of(x), run.of(y), run.of(rstd, x.dim(1)),
                                                block.cache ? block.cache->length : run.first_position));
}

// d_x may be d_y.
void d_norm_and_rotate(Context& ctx, const Qwen3BlockContext& block, const Qwen3::Block& gradients,
                       const Qwen3::BlockActivations& acts, const KeyRing* ring, const Tensor& d_y, const Tensor& d_x) {
  const AttentionDims& d = block.attention.dims();
  for (const RowRun& run : RowRuns(ring, d_y.dim(0), d_y.dim(1)))
    qk_norm_rope_backward(ctx, {.d_y = run.of(d_y),
                                .x = run.of(acts.qkv),
                                .H = d.H,
                                .G = d.G,
                                .D = d.Dqk,
                                .q_weight = block.weights.q_norm,
                                .k_weight = block.weights.k_norm,
                                .theta = block.config.rope_theta,
                                .rstd = run.of(acts.qk_rstd, d_y.dim(1)),
                                .d_x = run.of(d_x),
                                .d_q_weight = gradients.q_norm,
                                .d_k_weight = gradients.k_norm,
                                .scratch = block.scratch,
                                .first_position = run.first_position});
}

Tensor rows_like(Arena& scratch, const Tensor& t) {
  return scratch.take(t.dtype, {t.dim(0), t.dim(1), t.dim(2)});
}

// attention.rope_projection: the maps behind the rotation; values pass.
struct RopeProjection {
  Tensor q, k, v;  // columns of a packed row, [N, heads*D] each; v [B,T,G,Dv]
  RopeProjection(const Tensor& rows, const AttentionDims& d) : v(packed_views(rows, d).v) {
    const Tensor flat = rows.view({-1, rows.dim(2)});
    q = flat.slice(1, 0, d.H * d.Dqk);
    k = flat.slice(1, d.H * d.Dqk, d.G * d.Dqk);
  }
};

void rope_projection(Context& ctx, const Qwen3BlockContext& block, const Tensor& x, const Tensor& y) {
  const RopeProjection from(x, block.attention.dims()), to(y, block.attention.dims());
  head_map_forward(ctx, {from.q, block.weights.q_rope, to.q});
  head_map_forward(ctx, {from.k, block.weights.k_rope, to.k});
  ctx.copy_rows(to.v, from.v);
}

void d_rope_projection(Context& ctx, const Qwen3BlockContext& block, const Qwen3::Block& gradients, const Tensor& x,
                       const Tensor& d_y, const Tensor& d_x) {
  const AttentionDims& d = block.attention.dims();
  const RopeProjection in(x, d), from(d_y, d), to(d_x, d);
  head_map_backward(ctx, {from.q, in.q, block.weights.q_rope, to.q, gradients.q_rope, block.scratch});
  head_map_backward(ctx, {from.k, in.k, block.weights.k_rope, to.k, gradients.k_rope, block.scratch});
  ctx.copy_rows(to.v, from.v);
}

void attend(Context& ctx, const Qwen3BlockContext& block, AttentionState& state, const Ranges& ranges,
            const RowsFrom& rows) {
  if (block.cache)
    attention_forward_cached(ctx, block.attention, state, *block.cache, ranges, block.scratch, rows);
  else
    attention_forward(ctx, block.attention, state, ranges, block.scratch, rows);
}

// norm1(x) -> acts.attention.out. The projected rows are kept apart where backward follows.
void self_attention(Context& ctx, const Qwen3BlockContext& block, Qwen3::BlockActivations& acts, const Ranges& ranges) {
  AttentionState& state = acts.attention;
  const Tensor projected = acts.qkv.empty() ? state.qkv : acts.qkv;
  linear(ctx, acts.norm1.y, block.weights.qkv, projected.view({acts.norm1.y.dim(0), -1}));
  if (block.weights.q_rope.empty() && ranges.ring == nullptr) {
    const QkNormRope rotation =
        norm_and_rotation(block, projected, state.qkv, acts.qk_rstd, block.cache ? block.cache->length : 0);
    return attend(ctx, block, state, ranges, {.rotation = &rotation, .gate = block.weights.qk_gate});
  }
  if (block.weights.q_rope.empty()) {
    norm_and_rotate(ctx, block, ranges.ring, projected, state.qkv, acts.qk_rstd);
  } else {
    ArenaScope scope(block.scratch);
    const Tensor rotated = rows_like(block.scratch, state.qkv);
    norm_and_rotate(ctx, block, ranges.ring, projected, rotated, acts.qk_rstd);
    rope_projection(ctx, block, rotated, state.qkv);
  }
  attend(ctx, block, state, ranges, {.gate = block.weights.qk_gate});
}

// The gradient of what attention read, in d_qkv, becomes that of the projected rows.
void d_queries_keys_values(Context& ctx, const Qwen3BlockContext& block, const Qwen3::Block& gradients,
                           const Qwen3::BlockActivations& acts, const KeyRing* ring, const Tensor& d_qkv) {
  if (block.weights.q_rope.empty()) return d_norm_and_rotate(ctx, block, gradients, acts, ring, d_qkv, d_qkv);
  ArenaScope scope(block.scratch);
  const Tensor rotated = rows_like(block.scratch, d_qkv), d_rotated = rows_like(block.scratch, d_qkv);
  norm_and_rotate(ctx, block, ring, acts.qkv, rotated, Tensor{});
  d_rope_projection(ctx, block, gradients, rotated, d_qkv, d_rotated);
  d_norm_and_rotate(ctx, block, gradients, acts, ring, d_rotated, d_qkv);
}

// The block but its last two steps: what backward needs.
void block_activations(Context& ctx, const Qwen3BlockContext& block, Qwen3::BlockActivations& acts,
                       const Tensor& residual, const Tensor& branch, const Tensor& branch_out, const Ranges& ranges) {
  const Qwen3::Block& w = block.weights;
  const std::int64_t N = residual.dim(0);
  qwen3_norm_forward(ctx, block.config, w.norm1, residual, branch, acts.norm1);
  self_attention(ctx, block, acts, ranges);
  linear(ctx, acts.attention.out.view({N, -1}), w.proj, branch_out);
  qwen3_norm_forward(ctx, block.config, w.norm2, acts.norm1.residual, branch_out, acts.norm2);
  linear(ctx, acts.norm2.y, w.gate_up, acts.gate_up);
}

// The norm's output from the stream that it kept, with the very same arithmetic.
void norm_again(Context& ctx, const Qwen3BlockContext& block, const Tensor& weight, const Qwen3::Norm& norm) {
  qwen3_norm_forward(ctx, block.config, weight, norm.residual, Tensor{}, norm);
}

}  // namespace

void qwen3_block_forward(Context& ctx, const Qwen3BlockContext& block, Qwen3::BlockActivations& acts,
                         const Tensor& residual, const Tensor& branch, const Tensor& branch_out, const Ranges& ranges) {
  block_activations(ctx, block, acts, residual, branch, branch_out, ranges);
  swiglu_forward(ctx, acts.gate_up, acts.gated);
  linear(ctx, acts.gated, block.weights.down, branch_out);
}

void qwen3_block_backward(Context& ctx, const Qwen3BlockContext& block, const Qwen3::Block& gradients,
                          Qwen3::BlockActivations& acts, const Tensor& d_residual, const Ranges& ranges) {
  const Qwen3::Block& w = block.weights;
  const std::int64_t N = d_residual.dim(0), C = d_residual.dim(1);
  Arena& scratch = block.scratch;
  ArenaScope scope(scratch);
  const DType type = d_residual.dtype;
  const bool again_outputs = block.config.recompute == "ops";
  if (block.config.recompute == "block" && !block.newest)
    block_activations(ctx, block, acts, acts.norm1.residual, Tensor{}, block.branch, ranges);
  const Tensor d_y = scratch.take(type, {N, C});
  {
    if (again_outputs && !block.newest) norm_again(ctx, block, w.norm2, acts.norm2);
    ArenaScope mlp(scratch);
    const Tensor d_gated = scratch.take(type, {N, acts.gated.dim(1)});
    d_linear(ctx, d_residual, acts.gated, w.down, d_gated, Tensor{}, scratch);
    swiglu_backward(ctx, {.gate_up = acts.gate_up, .d_y = d_gated, .d_gate_up = acts.gate_up, .y = acts.gated});
    d_linear(ctx, d_residual, acts.gated, w.down, Tensor{}, gradients.down, scratch);
    d_linear(ctx, acts.gate_up, acts.norm2.y, w.gate_up, d_y, gradients.gate_up, scratch);
  }
  qwen3_norm_backward(ctx, {w.norm2, gradients.norm2, acts.norm2, d_y, d_residual, d_residual}, scratch);

  const Tensor& out = acts.attention.out;
  const Tensor d_out = scratch.take(type, {out.dim(0), out.dim(1), out.dim(2), out.dim(3)});
  const Tensor d_qkv = rows_like(scratch, acts.attention.qkv);
  d_linear(ctx, d_residual, out.view({N, -1}), w.proj, d_out.view({N, -1}), gradients.proj, scratch);
  attention_backward(ctx, block.attention, acts.attention, ranges, d_out, d_qkv, scratch,
                     {w.qk_gate, gradients.qk_gate});
  d_queries_keys_values(ctx, block, gradients, acts, ranges.ring, d_qkv);
  if (again_outputs) norm_again(ctx, block, w.norm1, acts.norm1);
  d_linear(ctx, d_qkv.view({N, -1}), acts.norm1.y, w.qkv, d_y, gradients.qkv, scratch);
  qwen3_norm_backward(ctx, {w.norm1, gradients.norm1, acts.norm1, d_y, d_residual, d_residual}, scratch);
}

}  // namespace sfa
