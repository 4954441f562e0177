// One Qwen3 block, forward and backward side by side. As in GPT-2's, the residual addition of a branch happens in the
// norm that follows it: a block receives the residual stream and the pending branch of the block before it, and leaves
// its own.
#pragma once

#include "models/qwen3/qwen3.h"

namespace sfa {

struct Qwen3BlockContext {
  const ModelConfig& config;
  const Attention& attention;
  const Qwen3::Block& weights;
  Arena& scratch;
  KvCache* cache = nullptr;  // set while generating
  Tensor branch = {};        // backward: [N,C] to compute a branch in again
  bool newest = false;       // backward: what blocks share still is this block's
};

/// residual [N,C], branch [N,C] or empty: the stream is residual + branch. branch_out [N,C] receives the MLP's output;
/// the stream after the block is acts.norm2.residual + branch_out.
void qwen3_block_forward(Context& ctx, const Qwen3BlockContext& block, Qwen3::BlockActivations& acts,
                         const Tensor& residual, const Tensor& branch, const Tensor& branch_out, const Ranges& ranges);

/// d_residual [N,C]: in, the gradient of the stream after the block; out, of the stream before it. What
/// config.recompute left to blocks to share is computed again; acts.gate_up is overwritten by its gradient.
void qwen3_block_backward(Context& ctx, const Qwen3BlockContext& block, const Qwen3::Block& gradients,
                          Qwen3::BlockActivations& acts, const Tensor& d_residual, const Ranges& ranges);

void qwen3_norm_forward(Context& ctx, const ModelConfig& config, const Tensor& weight, const Tensor& residual,
                        const Tensor& branch, const Qwen3::Norm& norm);

struct Qwen3NormBackward {
  Tensor weight, d_weight;  // [C]
  const Qwen3::Norm& norm;
  Tensor d_y, d_residual_out, d_residual;  // [N,C]
};
void qwen3_norm_backward(Context& ctx, const Qwen3NormBackward& args, Arena& scratch);

}  // namespace sfa
