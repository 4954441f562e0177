// The optimizer's memory and its step: the guard's decision, then AdamW over the flat ranges of a parameter list.
#pragma once

#include <functional>
#include <vector>

#include "core/arena.h"
#include "core/flat_range.h"
#include "models/parameters.h"
#include "optim/adamw.h"
#include "optim/guard.h"

namespace sfa {

struct OptimizerOptions {
  float beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f, weight_decay = 0.1f;
  float max_norm = 1.0f;  // 0 = no clipping
  GuardOptions guard = {};
  std::int64_t guard_window = 0;  // steps that spikes are judged by; 0 = they are not looked for
  NoiseOptions noise = {};
  float ema_decay = 0;               // of ParameterBuffers::ema
  bool stochastic_rounding = false;  // of params; needs bf16 weights (stored, or imitated by the context)
  std::uint64_t seed = 0;            // of stochastic rounding
};

/// Flat buffers of one model, all with the offsets of its ParameterList. Where several ranks share the optimizer's work
/// (ZeRO, Rajbhandari et al., arXiv 1910.02054), `owned` is this rank's part of it: masters, moments and averages hold
/// nothing else. Otherwise it is everything.
struct ParameterBuffers {
  Tensor params;     // weights as the model uses them
  Tensor gradients;  // f32 or bf16
  Tensor master;     // f32; the same memory as params when the model works in unrounded f32, or there are no masters
  Tensor m, v;       // f32 moments
  Tensor ema = {};   // f32 running average of the weights, or empty
  FlatRange owned = {};
  bool separate_master = false;
  std::int64_t gradient_begin = 0;  // element of the flat buffer at which `gradients` begin: 0, or that of `owned`

  [[nodiscard]] bool sharded() const { return owned.count != params.numel(); }
  /// The weights that this rank updates, as the model uses them.
  [[nodiscard]] Tensor owned_params() const { return params.slice(0, owned.begin, owned.count); }
};

/// Where they lie, so that each is seen in a plan.
struct ParameterArenas {
  Arena &weights, &gradients;
  Arena& optimizer;  // masters, moments and averages
};

/// `separate_master`: weights are stored rounded, and the f32 originals get memory of their own.
struct ParameterPlan {
  DType dtype = DType::f32, grad_dtype = DType::f32;
  bool separate_master = false;
  FlatRange owned = {};
  bool owned_gradients = false;  // only those of `owned` are kept, in f32
};
ParameterBuffers plan_parameters(const ParameterArenas& arenas, const ParameterList& list, const ParameterPlan& plan);
ParameterBuffers plan_parameters(const ParameterArenas& arenas, const ParameterList& list, DType dtype,
                                 DType grad_dtype, bool separate_master);

/// How a rank's sums become those of all ranks: adds the doubles, whose bits an i64 tensor holds, in place, in the
/// order of the context's work. Empty = one rank.
using SumOverRanks = std::function<void(Context& ctx, const Tensor& doubles)>;

/// The step's loss for the guard: `total` [1] holds the bits of a double, total * scale is the mean. Empty = only the
/// gradient is watched.
struct StepLoss {
  Tensor total = {};
  double scale = 1;
};

class Optimizer {
 public:
  Optimizer(const ParameterList& list, const ParameterBuffers& buffers, OptimizerOptions options, Arena& arena);

  /// Several ranks: to be set before the first step. Gradients are to be summed over ranks before step(), in the owned
  /// part at least.
  void set_sum_over_ranks(SumOverRanks sum) { sum_over_ranks_ = std::move(sum); }

  /// Global norm over all gradients, the guard's decision, clipping, and one AdamW update unless it is left out. `step`
  /// counts from 1. Nothing waits for the device.
  void step(Context& ctx, std::int64_t step, float lr, const StepLoss& loss = {});
  /// Gradient noise scale: to be called when the gradients hold the step's first micro-step and nothing else.
  void measure_small_batch(Context& ctx);

  /// What decide_step() said of the last step (waits for the device).
  StepState read_state(Context& ctx) const;
  /// The guard and its window [2 * guard_window] (waits for the device), and the inverse.
  GuardState read_guard(Context& ctx) const;
  std::vector<float> read_window(Context& ctx) const;
  void write_guard(Context& ctx, const GuardState& guard, const std::vector<float>& window) const;
  /// GuardState bytes on the device, for copies that do not wait.
  [[nodiscard]] const Tensor& guard_memory() const { return guard_; }
  [[nodiscard]] const OptimizerOptions& options() const { return options_; }

  /// True when every weight, moment and average is finite (waits for the device).
  bool all_finite(Context& ctx) const;
  /// Rounds the owned part of the weights that the model uses (`to`, flat) from the masters as the last update did.
  void publish(Context& ctx, const Tensor& to) const;

 private:
  struct Range {
    std::int64_t begin, count;
    bool decay;
  };
  void locate(Context& ctx);

  std::vector<Range> ranges_;
  std::vector<std::int64_t> spans_host_;  // [P, 2]: offset and elements
  ParameterBuffers buffers_;
  OptimizerOptions options_;
  SumOverRanks sum_over_ranks_;
  Tensor state_, guard_, window_, partials_, small_partials_, spans_, sums_;
  bool spans_uploaded_ = false;
};

}  // namespace sfa
