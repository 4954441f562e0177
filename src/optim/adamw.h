// AdamW (Loshchilov and Hutter, arXiv 1711.05101) over flat ranges of parameters, and the state that it reads on the
// device, so that a step needs nothing from the host.
//   g = grad * clip;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   master -= lr * ( (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps) + weight_decay * master );  param = round(master)
//   ema += ema_weight(t) (master - ema)                                                     (when there is an average)
// t counts the updates that were made; the guard (optim/guard.h) decides whether this one is. Without masters the
// stored weights themselves are updated and rounded stochastically. The gradient is set to zero by the caller, not
// here.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

/// Lives in device memory (one struct). The host writes its part before a step, decide_step() the rest; the host may
/// read it later.
struct StepState {
  float lr = 0;             // host: learning rate of this step
  float correction1 = 1;    // 1 / (1 - b1^t)
  float correction2 = 1;    // 1 / (1 - b2^t)
  float max_norm = 0;       // host: clip to this global norm; 0 = do not clip
  float grad_norm = 0;      // global norm of the gradient
  float clip = 1;           // min(1, max_norm / (grad_norm + 1e-6))
  std::int32_t skip = 0;    // not 0: adamw_update does nothing
  float loss = 0;           // mean loss of the step
  double loss_scale = 0;    // host: 1 / targets of the step, makes the sum of losses a mean
  std::int64_t step = 0;    // host: number of the step, from 1
  std::int64_t update = 1;  // t, the number of this update
  std::int64_t event = -1;  // number of the guard's event of this step; -1 = none
};

/// Sum of squares of `grad` [n] (f32 or bf16), added into partial sums in a fixed order. partials: [kNormPartials] i64
/// whose bits are doubles, zeroed by the caller before the first range.
inline constexpr std::int64_t kNormPartials = 1024;
void gradient_norm_accumulate(Context& ctx, const Tensor& grad, const Tensor& partials);

struct AdamW {
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f, weight_decay = 0.0f;
  Tensor grad;      // [n] f32 or bf16
  Tensor master;    // [n] f32; empty = the weights are `param` alone
  Tensor m, v;      // [n] f32
  Tensor param;     // [n] dtype of the model; may be the same memory as master when that is f32
  Tensor state;     // StepState bytes, u8
  Tensor ema = {};  // [n] f32 or empty: running average of the weights
  float ema_decay = 0;
  bool stochastic = false;  // param is rounded stochastically to bf16, keyed by (seed, t, flat element)
  std::uint64_t seed = 0;
  std::int64_t first = 0;  // place of element 0 in the flat buffer; a multiple of 4
};
void adamw_update(Context& ctx, const AdamW& args);

/// to [n] (f32 or bf16) = from [n] (f32), rounded as adamw_update number `update` rounds: stochastically where asked
/// for and update > 0, otherwise to nearest where the context or the dtype is bf16. Distinct memory.
struct RoundWeights {
  Tensor from, to;
  bool stochastic = false;
  std::uint64_t seed = 0;
  std::int64_t update = 0;
  std::int64_t first = 0;  // place of element 0 in the flat buffer; a multiple of 4
};
void round_weights(Context& ctx, const RoundWeights& args);

}  // namespace sfa
