// GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks with biases, tanh-GELU MLP, tied head, no dropout.
//   x = wte[token] + wpe[position]
//   x = x + proj(attention(qkv(norm1(x))));   x = x + down(gelu(up(norm2(x))))        in each block
//   logits = norm_f(x) wte^T
#pragma once

#include <vector>

#include "models/model.h"

namespace sfa {

class Gpt2 final : public Model {
 public:
  Gpt2(ModelConfig config, Device device, DType dtype);

  void bind(const Tensor& parameters, const FlatMemory& gradients) override;
  void plan(ModelArenas& arenas, std::int64_t B, std::int64_t T) override;
  void forward_backward(Context& ctx, ModelArenas& arenas, const ModelInput& batch, float loss_scale,
                        const Tensor& losses) override;
  void evaluate(Context& ctx, ModelArenas& arenas, const ModelInput& batch, const EvaluateOutput& out) override;
  std::unique_ptr<Generation> start_generation(Context& ctx, std::int64_t B, std::int64_t capacity,
                                               std::int64_t chunk) override;
  Tensor feed(Context& ctx, Generation& generation, const Tensor& tokens) override;
  [[nodiscard]] ModelCost cost(std::int64_t T) const override;

  /// A norm's or a linear layer's tensors; the same struct holds weights and gradients.
  struct Affine {
    Tensor weight, bias;
  };
  struct Block {
    Affine norm1, qkv, proj, norm2, up,
        down;        // qkv.weight [row, C], proj.weight [C, H*Dv], up.weight [F, C], down.weight [C, F]
    Tensor qk_gate;  // attention.gate: [(H+G)*Dqk], factors of queries' features, then of keys'; empty when none
  };
  struct Weights {
    Tensor wte, wpe;  // [Vp, C], [P, C]
    std::vector<Block> blocks;
    Affine norm_f;
  };

  /// Output of a fused residual + norm, kept for backward. Rows are N = B*T.
  struct Norm {
    Tensor residual;    // [N, C]: the residual stream after the addition
    Tensor y;           // [N, C]
    Tensor mean, rstd;  // [N]
  };
  struct BlockActivations {
    Norm norm1, norm2;
    AttentionState attention;
    Tensor up_pre, up;  // [N, F] before and after gelu
  };
  struct Activations {
    Tensor embedded;  // [N, C]
    Tensor branch;    // [N, C]: output of the newest branch, consumed by the next norm
    std::vector<BlockActivations> blocks;
    Norm norm_f;
  };

 private:
  void declare_parameters();
  Weights views(const FlatMemory& flat) const;
  /// `recompute` as in ModelConfig: what blocks share then instead of keeping it each.
  Activations plan_activations(Arena& saved, Arena& scratch, std::int64_t B, std::int64_t T, std::int64_t blocks,
                               const std::string& recompute) const;
  void forward(Context& ctx, Arena& scratch, const ModelInput& batch);

  Weights weights_, gradients_;
  Activations acts_;
};

}  // namespace sfa
