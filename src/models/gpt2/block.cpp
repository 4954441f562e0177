#include "models/gpt2/block.h"

#include "ops/linear/linear.h"
#include "ops/residual_norm/residual_norm.h"

namespace sfa {

void gpt2_norm_forward(Context& ctx, const ModelConfig& config, const Gpt2::Affine& weights, const Tensor& residual,
                       const Tensor& branch, const Gpt2::Norm& norm) {
  residual_norm_forward(ctx, {.residual = residual,
                              .x = branch,
                              .weight = weights.weight,
                              .bias = weights.bias,
                              .eps = static_cast<float>(config.layer_norm_epsilon),
                              .residual_out = branch.empty() ? Tensor{} : norm.residual,
                              .y = norm.y,
                              .mean = norm.mean,
                              .rstd = norm.rstd});
}

void gpt2_norm_backward(Context& ctx, const Gpt2NormBackward& args, Arena& scratch) {
  residual_norm_backward(ctx, {.d_y = args.d_y,
                               .d_residual_out = args.d_residual_out,
                               .residual_out = args.norm.residual,
                               .weight = args.weights.weight,
                               .mean = args.norm.mean,
                               .rstd = args.norm.rstd,
                               .d_residual = args.d_residual,
                               .d_weight = args.gradients.weight,
                               .d_bias = args.gradients.bias,
                               .scratch = scratch,
                               .d_x_bias = args.d_branch_bias});
}

namespace {

void linear(Context& ctx, const Tensor& x, const Gpt2::Affine& w, const Tensor& y) {
  linear_forward(ctx, {x, w.weight, w.bias, y, Tensor{}});
}

void linear_gelu(Context& ctx, const Tensor& x, const Gpt2::Affine& w, const Tensor& pre, const Tensor& y) {
  linear_forward(ctx, {x, w.weight, w.bias, y, pre});
}

void d_linear(Context& ctx, const Tensor& d_y, const Tensor& x, const Gpt2::Affine& w, const Gpt2::Affine& g,
              const Tensor& d_x, Arena& scratch) {
  linear_backward(ctx, {d_y, x, w.weight, Tensor{}, d_x, g.weight, g.bias, scratch});
}

// The two layers that end a branch. Their d_y is the gradient of the stream, so that their bias gradients were taken by
// the norm behind them.
void d_proj(Context& ctx, const Tensor& d_y, const Tensor& x, const Gpt2::Affine& w, const Gpt2::Affine& g,
            const Tensor& d_x, Arena& scratch) {
  linear_backward(ctx, {d_y, x, w.weight, Tensor{}, d_x, g.weight, Tensor{}, scratch});
}
// The gradient goes on to what was before the gelu, and to the bias of the layer that made that.
void d_down(Context& ctx, const Tensor& d_y, const Gpt2::BlockActivations& a, const Gpt2::Affine& w,
            const Gpt2::Affine& g, const Tensor& d_pre, const Tensor& d_up_bias, Arena& scratch) {
  linear_backward(ctx, {d_y, a.up, w.weight, a.up_pre, d_pre, g.weight, Tensor{}, scratch, d_up_bias});
}

}  // namespace

namespace {

// The block but its last layer: what backward needs.
void block_activations(Context& ctx, const Gpt2BlockContext& block, Gpt2::BlockActivations& acts,
                       const Tensor& residual, const Tensor& branch, const Tensor& branch_out, const Ranges& ranges) {
  const Gpt2::Block& w = block.weights;
  const std::int64_t N = residual.dim(0);
  gpt2_norm_forward(ctx, block.config, w.norm1, residual, branch, acts.norm1);
  const LinearForward qkv = {acts.norm1.y, w.qkv.weight, w.qkv.bias, acts.attention.qkv.view({N, -1}), Tensor{}};
  const RowsFrom rows{.projection = &qkv, .gate = w.qk_gate};
  if (block.cache)
    attention_forward_cached(ctx, block.attention, acts.attention, *block.cache, ranges, block.scratch, rows);
  else
    attention_forward(ctx, block.attention, acts.attention, ranges, block.scratch, rows);
  linear(ctx, acts.attention.out.view({N, -1}), w.proj, branch_out);
  gpt2_norm_forward(ctx, block.config, w.norm2, acts.norm1.residual, branch_out, acts.norm2);
  linear_gelu(ctx, acts.norm2.y, w.up, acts.up_pre, acts.up);
}

// The norm's output from the stream that it kept, with the very same arithmetic.
void norm_again(Context& ctx, const Gpt2BlockContext& block, const Gpt2::Affine& weights, const Gpt2::Norm& norm) {
  gpt2_norm_forward(ctx, block.config, weights, norm.residual, Tensor{}, norm);
}

}  // namespace

void gpt2_block_forward(Context& ctx, const Gpt2BlockContext& block, Gpt2::BlockActivations& acts,
                        const Tensor& residual, const Tensor& branch, const Tensor& branch_out, const Ranges& ranges) {
  block_activations(ctx, block, acts, residual, branch, branch_out, ranges);
  linear(ctx, acts.up, block.weights.down, branch_out);
}

void gpt2_block_backward(Context& ctx, const Gpt2BlockContext& block, const Gpt2::Block& gradients,
                         Gpt2::BlockActivations& acts, const Tensor& d_residual, const Ranges& ranges) {
  const Gpt2::Block& w = block.weights;
  const std::int64_t N = d_residual.dim(0), C = d_residual.dim(1);
  Arena& scratch = block.scratch;
  ArenaScope scope(scratch);
  const DType type = d_residual.dtype;
  const bool again_outputs = block.config.recompute == "ops";
  if (block.config.recompute == "block" && !block.newest)
    block_activations(ctx, block, acts, acts.norm1.residual, Tensor{}, block.branch, ranges);
  const Tensor d_y = scratch.take(type, {N, C});
  {
    if (again_outputs && !block.newest) {
      gelu_forward(ctx, acts.up_pre, acts.up);
      norm_again(ctx, block, w.norm2, acts.norm2);
    }
    ArenaScope mlp(scratch);
    const Tensor d_up = scratch.take(type, {N, acts.up.dim(1)});
    d_down(ctx, d_residual, acts, w.down, gradients.down, d_up, gradients.up.bias, scratch);
    d_linear(ctx, d_up, acts.norm2.y, w.up, {gradients.up.weight, Tensor{}}, d_y, scratch);
  }
  gpt2_norm_backward(ctx, {w.norm2, gradients.norm2, acts.norm2, d_y, d_residual, d_residual, gradients.proj.bias},
                     scratch);

  const Tensor d_out = scratch.take(type, {N, acts.attention.out.dim(2) * acts.attention.out.dim(3)});
  const Tensor d_qkv =
      scratch.take(type, {acts.attention.qkv.dim(0), acts.attention.qkv.dim(1), acts.attention.qkv.dim(2)});
  d_proj(ctx, d_residual, acts.attention.out.view({N, -1}), w.proj, gradients.proj, d_out, scratch);
  const AttentionState& state = acts.attention;
  attention_backward(ctx, block.attention, acts.attention, ranges,
                     d_out.view({state.out.dim(0), state.out.dim(1), state.out.dim(2), state.out.dim(3)}), d_qkv,
                     scratch, {w.qk_gate, gradients.qk_gate});
  if (again_outputs) norm_again(ctx, block, w.norm1, acts.norm1);
  d_linear(ctx, d_qkv.view({N, -1}), acts.norm1.y, w.qkv, gradients.qkv, d_y, scratch);
  gpt2_norm_backward(ctx, {w.norm1, gradients.norm1, acts.norm1, d_y, d_residual, d_residual, block.d_branch_bias},
                     scratch);
}

}  // namespace sfa
