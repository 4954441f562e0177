// A model: one list of parameters and two adjacent functions a block, forward and backward, that call ops. No autograd,
// no layer classes. Models know no CUDA, NCCL or HDF5.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "attention/attention.h"
#include "attention/ring/key_ring.h"
#include "core/arena.h"
#include "core/context.h"
#include "models/parameters.h"

namespace sfa {

/// `model` of the configuration. Zero means "from the data" (vocab_size) or "derived" (the rest), until resolve() has
/// run.
struct ModelConfig {
  std::string arch = "gpt2";
  std::int64_t num_hidden_layers = 12;
  std::int64_t num_attention_heads = 12;
  std::int64_t num_key_value_heads = 0;  // 0 = num_attention_heads
  std::int64_t hidden_size = 768;
  std::int64_t head_dim = 0;           // features of a value head; 0 = hidden_size / num_attention_heads
  std::int64_t intermediate_size = 0;  // 0 = 4 * hidden_size, qwen3: 3 * hidden_size
  std::int64_t max_position_embeddings = 1024;
  std::int64_t vocab_size = 0;       // 0 = the vocabulary of the data
  double layer_norm_epsilon = 1e-5;  // gpt2
  double rms_norm_eps = 1e-6;        // qwen3
  double rope_theta = 1e6;           // qwen3
  bool tie_word_embeddings = true;   // gpt2: always
  double initializer_range = 0.02;
  double qk_initializer_range = 0;  // attention.qk_initializer_range: 0 = initializer_range
  std::string recompute = "none";   // train.recompute: none | ops | block; no part of what the model is
  AttentionConfig attention;
  std::int64_t k = 0;                    // attention.k: sets k_q and k_k where they are 0
  std::vector<std::int64_t> k_by_layer;  // attention.k_by_layer: empty, or k of every block; 0 = k
  std::int64_t qk_head_dim = 0;          // attention.qk_head_dim: 0 = head_dim
  std::string rope_projection = "none";  // attention.rope_projection: none | shared | per_head (qwen3)

  /// Fills the derived fields and checks everything that does not depend on the data; throws Error with one sentence.
  void resolve();

  [[nodiscard]] AttentionDims attention_dims() const;
  /// `attention` as one block has it.
  [[nodiscard]] AttentionConfig attention_of(std::int64_t layer) const;
  /// vocab_size rounded up to a multiple of kVocabularyPadding.
  [[nodiscard]] std::int64_t padded_vocab_size() const;
  static constexpr std::int64_t kVocabularyPadding = 64;
};

/// A micro-batch on the model's device.
struct ModelInput {
  Tensor tokens;     // [B,T] i32
  Tensor targets;    // [B,T] i32, -1 = not counted
  Tensor first_key;  // optional, Ranges::first_key: document masks
  // optional, [1] f32: a factor of forward_backward's loss_scale, but for auxiliary losses, which are means of tokens
  Tensor loss_weight = {};
};

struct ModelArenas {
  Arena activations;  // kept from forward to backward
  Arena scratch;      // lives within an op or a block
  explicit ModelArenas(Device device) : activations("activations", device), scratch("scratch", device) {}
};

/// What evaluate() writes: the losses, and on demand whether each target is what greedy decoding would choose.
struct EvaluateOutput {
  Tensor losses;  // [B*T] f32, 0 where the target is -1
  Tensor greedy;  // [B*T] i32 or empty: 1 or 0 (ops/classifier)
  EvaluateOutput(Tensor l, Tensor g = {}) : losses(std::move(l)), greedy(std::move(g)) {}  // losses alone are the rule
};

/// Work of a model. FLOPs count a multiply-add as two and need only what the mathematics needs (no recomputation).
struct ModelCost {
  double parameters = 0;               // without vocabulary padding
  double forward_flops_per_token = 0;  // at the length asked for, attention included
  double backward_flops_per_token = 0;
  double attention_flops_per_token = 0;  // forward, the attention cores alone
  double attention_backward_flops_per_token = 0;
  double attention_saved_bytes_per_token = 0;  // what attention keeps from forward to backward, all layers
  double kv_bytes_per_token = 0;               // all layers
};

/// Key/value caches of all layers with the memory to feed them; made by Model::start_generation.
struct Generation {
  virtual ~Generation() = default;
  std::int64_t batch = 0, capacity = 0, length = 0;
};

class Model {
 public:
  virtual ~Model() = default;

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const ParameterList& parameters() const { return parameters_; }
  [[nodiscard]] Device device() const { return device_; }
  /// Type of weights and activations.
  [[nodiscard]] DType dtype() const { return dtype_; }

  /// Points the model at flat buffers of flat_size() elements: weights of dtype(), and gradients (f32 or bf16; empty
  /// when only evaluating).
  virtual void bind(const Tensor& parameters, const FlatMemory& gradients) = 0;

  /// Plans one micro-step of B x T. Call with counting arenas, bind them, call again; run() both times takes the same
  /// memory. Scratch is counted by running the step on a context whose `planning` is set.
  virtual void plan(ModelArenas& arenas, std::int64_t B, std::int64_t T) = 0;

  /// losses [B*T] f32. Adds to the gradients of all parameters the gradient of loss_scale * sum of losses.
  virtual void forward_backward(Context& ctx, ModelArenas& arenas, const ModelInput& batch, float loss_scale,
                                const Tensor& losses) = 0;
  /// Forward only.
  virtual void evaluate(Context& ctx, ModelArenas& arenas, const ModelInput& batch, const EvaluateOutput& out) = 0;

  /// Caches for `capacity` tokens in each of B sequences; up to `chunk` tokens are fed at a time.
  virtual std::unique_ptr<Generation> start_generation(Context& ctx, std::int64_t B, std::int64_t capacity,
                                                       std::int64_t chunk) = 0;
  /// Feeds tokens [B, n] (n <= chunk) after those already in the caches; returns logits [B, Vp] of the last one, in
  /// dtype(), on the device.
  virtual Tensor feed(Context& ctx, Generation& generation, const Tensor& tokens) = 0;

  [[nodiscard]] virtual ModelCost cost(std::int64_t T) const = 0;

  /// train.distill: forward_backward() adds lambda times the mean over layers and heads of each token's squared
  /// distance between sparse and dense attention to its loss, and the sum of the distances of all layers to `total`
  /// ([1] i64, the bits of a double).
  struct Distill {
    bool active = false;
    Tensor total = {};
  };
  Distill distill;

  /// model.attention.balance: forward_backward() adds the balance of all layers, heads, sides and rows (ops/balance) to
  /// it, without LAMBDA ([1] i64, the bits of a double); empty = not wanted.
  Tensor balance_total;

  /// Set: other ranks hold the rest of each sequence, and a batch's rows are those of attention/ring/key_ring.h. To be
  /// set before plan(), and not for generation.
  KeyRing* ring = nullptr;

  /// train.k_anneal: from now on blocks select as many features as the way from config().attention.k_from down to their
  /// own k has at `done`, from 0 to 1 (annealed_k); before the first call their own.
  void anneal_k(double done);
  /// The features that each block selects now.
  [[nodiscard]] std::vector<ActiveFeatures> active_features() const;

  /// Called by forward_backward() and evaluate() behind each layer's attention, with what it selected and multiplied
  /// there; the work may still be queued on the context. For analysis; empty = not called.
  std::function<void(std::int64_t layer, const AttentionState& state)> on_attention;

  /// Called by forward_backward() as backward gets on: nothing queued on the context from now on changes the gradients
  /// of elements [begin, end) of the flat buffer, padding included. Each element is named at most once a call of
  /// forward_backward(); what is not named is final at its end. For sums over ranks beside backward; empty = not
  /// called.
  std::function<void(std::int64_t begin, std::int64_t end)> on_gradients_final;

 protected:
  /// Tells on_gradients_final of the parameters whose names begin with `prefix`; they lie side by side.
  void say_final(const Context& ctx, std::string_view prefix) const;

  /// What the rows of a batch see.
  [[nodiscard]] Ranges ranges_of(const ModelInput& batch) const {
    return {.window = config_.attention.window, .first_key = batch.first_key, .ring = ring};
  }
  /// Tells the attention of every block what one micro-step adds to its loss; evaluate() passes loss_scale 0.
  void set_auxiliary_losses(float loss_scale);
  Model(ModelConfig config, Device device, DType dtype);

  /// attention.gate of the block whose parameters begin with `block`: one parameter, two tensors to Hugging Face.
  [[nodiscard]] Parameter qk_gate(const std::string& block, const std::string& hf) const;

  /// Of one block; blocks differ in k alone.
  [[nodiscard]] const Attention& attention(std::size_t layer) const { return *attention_[layer]; }
  /// The one whose state serves every block in its turn: that of most features.
  [[nodiscard]] const Attention& widest_attention() const;
  [[nodiscard]] std::vector<const Attention*> attention_of_blocks() const;
  /// Sums over all blocks, at T tokens.
  [[nodiscard]] AttentionCost attention_cost(std::int64_t T) const;

  ModelConfig config_;
  Device device_;
  DType dtype_;
  ParameterList parameters_;

 private:
  [[nodiscard]] Distillation distillation(float loss_scale) const;

  std::vector<std::unique_ptr<Attention>> attention_;  // one a block
};

/// The course of train.k_anneal: from * (k / from)^done, rounded, so that in equal times equal shares of a support go;
/// even for topk_pairs, and k itself where `from` is not more.
int annealed_k(int from, int k, double done, bool even);

/// Counts in the arenas what micro-steps of B x T take (training = forward_backward is used, otherwise evaluate alone).
/// Allocates nothing and needs no device.
void count_model(Model& model, ModelArenas& arenas, std::int64_t B, std::int64_t T, bool training);
/// Allocates what was counted, and plans the same steps on it.
void bind_model(Model& model, ModelArenas& arenas, std::int64_t B, std::int64_t T);
/// Both, one after the other.
void plan_model(Model& model, ModelArenas& arenas, std::int64_t B, std::int64_t T, bool training);

/// Throws Error naming the known architectures when config.arch is none of them. config must be resolved, its
/// vocabulary set.
std::unique_ptr<Model> make_model(const ModelConfig& config, Device device, DType dtype);

}  // namespace sfa
