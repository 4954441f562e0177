// AdamW (Loshchilov and Hutter, arXiv 1711.05101) over flat ranges of parameters, global-norm clipping, and the state
// that both read on the device, so that a step needs nothing from the host.
//   g = grad * clip;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   master -= lr * ( (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps) + weight_decay * master );  param = round(master)
// The gradient is set to zero by the caller, not here.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

/// Lives in device memory (one struct); the host writes the schedule's part before a step and may read the rest later.
struct StepState {
  float lr = 0;           // learning rate of this step
  float correction1 = 1;  // 1 / (1 - b1^t)
  float correction2 = 1;  // 1 / (1 - b2^t)
  float max_norm = 0;     // clip to this global norm; 0 = do not clip
  float grad_norm = 0;    // written by gradient_norm_finish
  float clip = 1;         // written by gradient_norm_finish: min(1, max_norm / (grad_norm + 1e-6))
  std::int32_t skip =
      0;  // written by gradient_norm_finish: 1 when the norm is not finite; adamw_update then does nothing
  std::int32_t pad = 0;
};

/// Sum of squares of `grad` [n] (f32 or bf16), added into partial sums in a fixed order. partials: [kNormPartials] i64
/// whose bits are doubles, zeroed by the caller before the first range.
inline constexpr std::int64_t kNormPartials = 1024;
void gradient_norm_accumulate(Context& ctx, const Tensor& grad, const Tensor& partials);
/// Turns the partial sums into state.grad_norm, state.clip and state.skip. state: the bytes of one StepState, as u8
/// [sizeof(StepState)].
void gradient_norm_finish(Context& ctx, const Tensor& partials, const Tensor& state);

struct AdamW {
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f, weight_decay = 0.0f;
  Tensor grad;    // [n] f32 or bf16
  Tensor master;  // [n] f32
  Tensor m, v;    // [n] f32
  Tensor param;   // [n] dtype of the model; may be the same memory as master when that is f32
  Tensor state;   // StepState bytes, u8
};
void adamw_update(Context& ctx, const AdamW& args);

}  // namespace sfa
