// Qwen3 (arXiv 2505.09388), without biases: RMS norms before each branch, grouped-query attention over heads whose
// width is free, RMS norm over each query and key head and rotary positions behind it, a gated MLP, a tied or own head.
//   x = wte[token]
//   x = x + proj(attention(rope(qk_norm(qkv(norm1(x))))));   x = x + down(silu(gate(norm2(x))) * up(norm2(x)))
//   logits = norm_f(x) head^T
// attention.rope_projection puts a linear map of each query and key head behind its rotation, the identity at first
// ("extra linear transformation after RoPE", arXiv 2603.22300, A.1).
#pragma once

#include <vector>

#include "models/model.h"

namespace sfa {

class Qwen3 final : public Model {
 public:
  Qwen3(ModelConfig config, Device device, DType dtype);

  void bind(const Tensor& parameters, const FlatMemory& gradients) override;
  void plan(ModelArenas& arenas, std::int64_t B, std::int64_t T) override;
  void forward_backward(Context& ctx, ModelArenas& arenas, const ModelInput& batch, float loss_scale,
                        const Tensor& losses) override;
  void evaluate(Context& ctx, ModelArenas& arenas, const ModelInput& batch, const EvaluateOutput& out) override;
  std::unique_ptr<Generation> start_generation(Context& ctx, std::int64_t B, std::int64_t capacity,
                                               std::int64_t chunk) override;
  Tensor feed(Context& ctx, Generation& generation, const Tensor& tokens) override;
  [[nodiscard]] ModelCost cost(std::int64_t T) const override;

  /// The same struct holds weights and gradients.
  struct Block {
    Tensor qkv;             // [row, C], rows [q heads | k heads | v heads]
    Tensor proj;            // [C, H*Dv]
    Tensor gate_up;         // [2F, C], gate before up
    Tensor down;            // [C, F]
    Tensor q_rope, k_rope;  // rope_projection: [D, D] shared, [H*D, D] and [G*D, D] per head; empty when none
    Tensor norm1, norm2;    // [C]
    Tensor q_norm, k_norm;  // [Dqk]
    Tensor qk_gate;         // attention.gate: [(H+G)*Dqk], factors of queries' features, then of keys'; empty when none
  };
  struct Weights {
    Tensor wte;   // [Vp, C]
    Tensor head;  // [Vp, C]; wte itself when tied
    std::vector<Block> blocks;
    Tensor norm_f;  // [C]
  };

  /// Output of a fused residual + norm, kept for backward. Rows are N = B*T.
  struct Norm {
    Tensor residual;  // [N, C]: the residual stream after the addition
    Tensor y;         // [N, C]
    Tensor rstd;      // [N]
  };
  struct BlockActivations {
    Norm norm1, norm2;
    Tensor qkv;      // [B, T, row] as projected; empty while generating, where attention.qkv is used for both
    Tensor qk_rstd;  // [N, H+G]; empty while generating
    AttentionState attention;
    Tensor gate_up;  // [N, 2F]
    Tensor gated;    // [N, F] = silu(gate) * up; shared by all blocks, since backward has it for the asking
  };
  struct Activations {
    Tensor embedded;  // [N, C]
    Tensor branch;    // [N, C]: output of the newest branch, consumed by the next norm
    std::vector<BlockActivations> blocks;
    Norm norm_f;
  };

 private:
  enum class Use : std::uint8_t { training, generation };
  void declare_parameters();
  void declare_block(std::int64_t layer);
  Weights views(const FlatMemory& flat) const;
  Activations plan_activations(Arena& saved, Arena& scratch, std::int64_t B, std::int64_t T, Use use) const;
  void forward(Context& ctx, Arena& scratch, const ModelInput& batch);

  Weights weights_, gradients_;
  Activations acts_;
};

}  // namespace sfa
