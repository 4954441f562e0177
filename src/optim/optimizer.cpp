#include "optim/optimizer.h"

#include <cmath>

#include "core/observer.h"

namespace sfa {

ParameterBuffers plan_parameters(const ParameterArenas& arenas, const ParameterList& list, DType dtype,
                                 DType grad_dtype, bool separate_master) {
  const std::int64_t n = list.flat_size();
  ParameterBuffers b;
  b.params = arenas.weights.take(dtype, {n});
  b.gradients = arenas.gradients.take(grad_dtype, {n});
  b.master = separate_master ? arenas.optimizer.take(DType::f32, {n}) : b.params;
  b.m = arenas.optimizer.take(DType::f32, {n});
  b.v = arenas.optimizer.take(DType::f32, {n});
  return b;
}

// Neighbouring parameters of one decay group become one range; the padding between them holds zeros and stays zero.
Optimizer::Optimizer(const ParameterList& list, const ParameterBuffers& buffers, OptimizerOptions options, Arena& arena)
    : buffers_(buffers), options_(options) {
  for (const Parameter& p : list.all()) {
    if (ranges_.empty() || ranges_.back().decay != p.decay) {
      if (!ranges_.empty()) ranges_.back().count = p.offset - ranges_.back().begin;
      ranges_.push_back({p.offset, 0, p.decay});
    }
  }
  if (!ranges_.empty()) ranges_.back().count = list.flat_size() - ranges_.back().begin;
  state_ = arena.take(DType::u8, {static_cast<std::int64_t>(sizeof(StepState))});
  partials_ = arena.take(DType::i64, {kNormPartials});
}

void Optimizer::step(Context& ctx, std::int64_t step, float lr) {
  StepState state;
  const double t = static_cast<double>(step);
  state.lr = lr;
  state.correction1 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(options_.beta1), t)));
  state.correction2 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(options_.beta2), t)));
  state.max_norm = options_.max_norm;
  ctx.copy(state_.data, state_.device, &state, Device::cpu, sizeof(StepState));
  {
    const OpScope scope(
        ctx, [&] { return OpWork{.kind = "gradient norm", .shape = "", .bytes = bytes_of({buffers_.gradients})}; });
    ctx.zero(partials_);
    gradient_norm_accumulate(ctx, buffers_.gradients, partials_);
    gradient_norm_finish(ctx, partials_, state_);
  }
  const OpScope scope(ctx, [&] {
    const ParameterBuffers& b = buffers_;
    return OpWork{.kind = "adamw",
                  .shape = "",
                  .bytes = bytes_of({b.gradients, b.master, b.master, b.m, b.m, b.v, b.v}) +
                           (b.params.data == b.master.data ? 0 : bytes_of({b.params}))};
  });
  for (const Range& r : ranges_) {
    const auto part = [&](const Tensor& t2) { return t2.slice(0, r.begin, r.count); };
    adamw_update(ctx, {.beta1 = options_.beta1,
                       .beta2 = options_.beta2,
                       .eps = options_.epsilon,
                       .weight_decay = r.decay ? options_.weight_decay : 0.0f,
                       .grad = part(buffers_.gradients),
                       .master = part(buffers_.master),
                       .m = part(buffers_.m),
                       .v = part(buffers_.v),
                       .param = part(buffers_.params),
                       .state = state_});
  }
}

StepState Optimizer::read_state(Context& ctx) const {
  StepState state;
  ctx.copy(&state, Device::cpu, state_.data, state_.device, sizeof(StepState));
  ctx.synchronize();
  return state;
}

}  // namespace sfa
