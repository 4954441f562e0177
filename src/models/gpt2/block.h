// One GPT-2 block, forward and backward side by side. The residual addition of a branch happens in the norm that
// follows it, which is in the next half-block; so a block receives the residual stream and the pending branch of the
// block before it, and leaves its own.
#pragma once

#include "models/gpt2/gpt2.h"

namespace sfa {

struct Gpt2BlockContext {
  const ModelConfig& config;
  const Attention& attention;
  const Gpt2::Block& weights;
  Arena& scratch;
  KvCache* cache = nullptr;  // set while generating
  Tensor d_branch_bias =
      {};  // backward: gradient of the bias of the layer that made the incoming branch; empty for the first block
  Tensor branch = {};   // backward: [N,C] to compute a branch in again
  bool newest = false;  // backward: what blocks share still is this block's
};

/// residual [N,C], branch [N,C] or empty: the stream is residual + branch. branch_out [N,C] receives the MLP's output;
/// the stream after the block is acts.norm2.residual + branch_out.
void gpt2_block_forward(Context& ctx, const Gpt2BlockContext& block, Gpt2::BlockActivations& acts,
                        const Tensor& residual, const Tensor& branch, const Tensor& branch_out, const Ranges& ranges);

/// d_residual [N,C]: in, the gradient of the stream after the block; out, of the stream before it. The gradient of the
/// down projection's bias is taken by the norm behind the block. What config.recompute left to blocks to share is
/// computed again.
void gpt2_block_backward(Context& ctx, const Gpt2BlockContext& block, const Gpt2::Block& gradients,
                         Gpt2::BlockActivations& acts, const Tensor& d_residual, const Ranges& ranges);

void gpt2_norm_forward(Context& ctx, const ModelConfig& config, const Gpt2::Affine& weights, const Tensor& residual,
                       const Tensor& branch, const Gpt2::Norm& norm);

struct Gpt2NormBackward {
  const Gpt2::Affine &weights, &gradients;
  const Gpt2::Norm& norm;
  Tensor d_y, d_residual_out, d_residual;  // [N,C]
  Tensor d_branch_bias;                    // [C] or empty: of the layer that made the branch that the norm added
};
void gpt2_norm_backward(Context& ctx, const Gpt2NormBackward& args, Arena& scratch);

}  // namespace sfa
