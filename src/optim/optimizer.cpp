#include "optim/optimizer.h"

#include <cmath>

#include "core/observer.h"

namespace sfa {
namespace {

bool finite_sum(Context& ctx, const Tensor& partials) {
  std::vector<double> sums(kNormPartials);
  ctx.copy(sums.data(), Device::cpu, partials.data, partials.device, sums.size() * sizeof(double));
  ctx.synchronize();
  double total = 0;
  for (double s : sums) total += s;
  return std::isfinite(total);
}

}  // namespace

ParameterBuffers plan_parameters(const ParameterArenas& arenas, const ParameterList& list, const ParameterPlan& plan) {
  const std::int64_t n = list.flat_size();
  const FlatRange& owned = plan.owned;
  ParameterBuffers b;
  b.owned = owned;
  b.separate_master = plan.separate_master;
  b.gradient_begin = plan.owned_gradients ? owned.begin : 0;
  b.params = arenas.weights.take(plan.dtype, {n});
  b.gradients = plan.owned_gradients ? arenas.gradients.take(DType::f32, {owned.count})
                                     : arenas.gradients.take(plan.grad_dtype, {n});
  b.master = plan.separate_master ? arenas.optimizer.take(DType::f32, {owned.count}) : b.owned_params();
  b.m = arenas.optimizer.take(DType::f32, {owned.count});
  b.v = arenas.optimizer.take(DType::f32, {owned.count});
  return b;
}

ParameterBuffers plan_parameters(const ParameterArenas& arenas, const ParameterList& list, DType dtype,
                                 DType grad_dtype, bool separate_master) {
  return plan_parameters(arenas, list, {dtype, grad_dtype, separate_master, {0, list.flat_size()}});
}

// Neighbouring parameters of one decay group become one range; the padding between them holds zeros and stays zero.
Optimizer::Optimizer(const ParameterList& list, const ParameterBuffers& buffers, OptimizerOptions options, Arena& arena)
    : buffers_(buffers), options_(options) {
  for (const Parameter& p : list.all()) {
    const FlatRange mine = intersection({p.offset, p.numel()}, buffers.owned);
    spans_host_.insert(spans_host_.end(), {mine.count > 0 ? mine.begin - buffers.gradient_begin : 0, mine.count});
    if (ranges_.empty() || ranges_.back().decay != p.decay) {
      if (!ranges_.empty()) ranges_.back().count = p.offset - ranges_.back().begin;
      ranges_.push_back({p.offset, 0, p.decay});
    }
  }
  if (!ranges_.empty()) ranges_.back().count = list.flat_size() - ranges_.back().begin;
  for (Range& r : ranges_) {
    const FlatRange mine = intersection({r.begin, r.count}, buffers.owned);
    r.begin = mine.begin;
    r.count = mine.count;
  }
  std::erase_if(ranges_, [](const Range& r) { return r.count == 0; });
  const auto parameters = static_cast<std::int64_t>(list.all().size());
  state_ = arena.take(DType::u8, {static_cast<std::int64_t>(sizeof(StepState))});
  guard_ = arena.take(DType::u8, {static_cast<std::int64_t>(sizeof(GuardState))});
  if (options_.guard_window > 0) window_ = arena.take(DType::f32, {2, options_.guard_window});
  partials_ = arena.take(DType::i64, {kNormPartials});
  if (options_.noise.batch > 0) small_partials_ = arena.take(DType::i64, {kNormPartials});
  spans_ = arena.take(DType::i64, {parameters, 2});
  sums_ = arena.take(DType::i64, {parameters, kLocateParts});
}

void Optimizer::measure_small_batch(Context& ctx) {
  if (small_partials_.empty()) return;
  ctx.zero(small_partials_);
  gradient_norm_accumulate(ctx, buffers_.gradients, small_partials_);
  if (sum_over_ranks_) sum_over_ranks_(ctx, small_partials_);
}

void Optimizer::locate(Context& ctx) {
  if (!spans_uploaded_) {
    ctx.copy(spans_.data, spans_.device, spans_host_.data(), Device::cpu, spans_host_.size() * sizeof(std::int64_t));
    spans_uploaded_ = true;
  }
  const LocateGradient args{buffers_.gradients, spans_, sums_, state_, guard_};
  const bool parts = sum_over_ranks_ && buffers_.sharded();
  if (parts) ctx.zero(sums_);
  locate_gradient(ctx, args);
  if (parts) sum_over_ranks_(ctx, sums_);
  note_gradients(ctx, args);
}

void Optimizer::step(Context& ctx, std::int64_t step, float lr, const StepLoss& loss) {
  StepState state;
  state.lr = lr;
  state.max_norm = options_.max_norm;
  state.loss_scale = loss.scale;
  state.step = step;
  ctx.copy(state_.data, state_.device, &state, Device::cpu, sizeof(StepState));
  {
    const OpScope scope(
        ctx, [&] { return OpWork{.kind = "gradient norm", .shape = "", .bytes = bytes_of({buffers_.gradients})}; });
    ctx.zero(partials_);
    const FlatRange& owned = buffers_.owned;
    if (owned.count > 0)
      gradient_norm_accumulate(ctx, buffers_.gradients.slice(0, owned.begin - buffers_.gradient_begin, owned.count),
                               partials_);
    if (sum_over_ranks_ && buffers_.sharded()) sum_over_ranks_(ctx, partials_);
    decide_step(ctx, {.partials = partials_,
                      .loss = loss.total,
                      .state = state_,
                      .guard = guard_,
                      .window = window_,
                      .small_partials = small_partials_,
                      .rule = {options_.guard, options_.noise, options_.beta1, options_.beta2}});
    locate(ctx);
  }
  const bool no_master = options_.stochastic_rounding && !buffers_.separate_master;
  const OpScope scope(ctx, [&] {
    const ParameterBuffers& b = buffers_;
    return OpWork{.kind = "adamw",
                  .shape = "",
                  .bytes = bytes_of({b.gradients, b.master, b.master, b.m, b.m, b.v, b.v}) +
                           (b.separate_master ? bytes_of({b.owned_params()}) : 0)};
  });
  for (const Range& r : ranges_) {
    const auto part = [&](const Tensor& t) { return t.slice(0, r.begin, r.count); };
    const auto own = [&](const Tensor& t) {
      return t.empty() ? Tensor{} : t.slice(0, r.begin - buffers_.owned.begin, r.count);
    };
    adamw_update(ctx, {.beta1 = options_.beta1,
                       .beta2 = options_.beta2,
                       .eps = options_.epsilon,
                       .weight_decay = r.decay ? options_.weight_decay : 0.0f,
                       .grad = buffers_.gradients.slice(0, r.begin - buffers_.gradient_begin, r.count),
                       .master = no_master ? Tensor{} : own(buffers_.master),
                       .m = own(buffers_.m),
                       .v = own(buffers_.v),
                       .param = part(buffers_.params),
                       .state = state_,
                       .ema = own(buffers_.ema),
                       .ema_decay = options_.ema_decay,
                       .stochastic = options_.stochastic_rounding,
                       .seed = options_.seed,
                       .first = r.begin});
  }
}

StepState Optimizer::read_state(Context& ctx) const {
  StepState state;
  ctx.copy(&state, Device::cpu, state_.data, state_.device, sizeof(StepState));
  ctx.synchronize();
  return state;
}

GuardState Optimizer::read_guard(Context& ctx) const {
  GuardState guard;
  ctx.copy(&guard, Device::cpu, guard_.data, guard_.device, sizeof(GuardState));
  ctx.synchronize();
  return guard;
}

std::vector<float> Optimizer::read_window(Context& ctx) const {
  std::vector<float> window(window_.empty() ? 0 : static_cast<std::size_t>(window_.numel()));
  ctx.copy(window.data(), Device::cpu, window_.data, guard_.device, window.size() * sizeof(float));
  ctx.synchronize();
  return window;
}

void Optimizer::write_guard(Context& ctx, const GuardState& guard, const std::vector<float>& window) const {
  require(window.size() == (window_.empty() ? 0 : static_cast<std::size_t>(window_.numel())),
          "internal error: a guard's window of {} values", window.size());
  ctx.copy(guard_.data, guard_.device, &guard, Device::cpu, sizeof(GuardState));
  ctx.copy(window_.data, guard_.device, window.data(), Device::cpu, window.size() * sizeof(float));
  ctx.synchronize();
}

// The square of a finite float is finite in double, and so is the sum of any number of them.
bool Optimizer::all_finite(Context& ctx) const {
  ctx.zero(partials_);
  for (const Tensor* t : {&buffers_.master, &buffers_.m, &buffers_.v, &buffers_.ema})
    if (!t->empty() && t->numel() > 0) gradient_norm_accumulate(ctx, *t, partials_);
  return finite_sum(ctx, partials_);
}

void Optimizer::publish(Context& ctx, const Tensor& to) const {
  const FlatRange& owned = buffers_.owned;
  if (owned.count == 0) return;
  const std::int64_t update = options_.stochastic_rounding ? read_guard(ctx).updates : 0;
  round_weights(ctx, {buffers_.master, to.slice(0, owned.begin, owned.count), options_.stochastic_rounding,
                      options_.seed, update, owned.begin});
}

}  // namespace sfa
