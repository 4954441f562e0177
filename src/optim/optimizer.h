// The optimizer's memory and its step: AdamW over the flat ranges of a parameter list.
#pragma once

#include <vector>

#include "core/arena.h"
#include "models/parameters.h"
#include "optim/adamw.h"

namespace sfa {

struct OptimizerOptions {
  float beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f, weight_decay = 0.1f;
  float max_norm = 1.0f;  // 0 = no clipping
};

/// Flat buffers of one model, all with the offsets of its ParameterList.
struct ParameterBuffers {
  Tensor params;     // weights as the model uses them
  Tensor gradients;  // f32 or bf16
  Tensor master;     // f32; the same memory as params when the model works in unrounded f32
  Tensor m, v;       // f32 moments
};

/// Where they lie, so that each is seen in a plan.
struct ParameterArenas {
  Arena &weights, &gradients;
  Arena& optimizer;  // masters and moments
};

/// `separate_master`: weights are stored rounded, so the f32 originals need memory of their own.
ParameterBuffers plan_parameters(const ParameterArenas& arenas, const ParameterList& list, DType dtype,
                                 DType grad_dtype, bool separate_master);

class Optimizer {
 public:
  Optimizer(const ParameterList& list, const ParameterBuffers& buffers, OptimizerOptions options, Arena& arena);

  /// Global norm over all gradients, clipping, and one AdamW update. `step` counts from 1. Nothing waits for the
  /// device; an update whose norm is not finite is left out there.
  void step(Context& ctx, std::int64_t step, float lr);
  /// Reads back the norm, clip factor and skip flag of the last step (waits for the device).
  StepState read_state(Context& ctx) const;

 private:
  struct Range {
    std::int64_t begin, count;
    bool decay;
  };
  std::vector<Range> ranges_;
  ParameterBuffers buffers_;
  OptimizerOptions options_;
  Tensor state_, partials_;
};

}  // namespace sfa
