// TrainingState of trainer.h: the memory of a run, planned and bound, and one optimizer step on it.
#include <algorithm>

#include "core/observer.h"
#include "eval/loaded_model.h"
#include "ops/reduce/reduce.h"
#include "train/trainer.h"

namespace sfa {

namespace {

DType storage_type(const Config& c, Device device) {
  return device == Device::cuda && wants_bf16(c.train.dtype, device) ? DType::bf16 : DType::f32;
}

}  // namespace

TrainingState::TrainingState(const Config& config, Device device)
    : context_(std::make_unique<Context>(device)),
      model_(make_model(config.model, device, storage_type(config, device))),
      parameters_("parameters", device),
      optimizer_memory_("optimizer", device),
      io_("batches", device),
      arenas_(device) {
  context_->round_bf16 = device == Device::cpu && wants_bf16(config.train.dtype, device);
  const TrainConfig& t = config.train;
  require(device == Device::cuda || t.grad_dtype == "fp32",
          "train.grad_dtype: the CPU keeps gradients in fp32, '{}' is for GPUs", t.grad_dtype);
  schedule_ = {t.schedule, t.lr, t.min_lr, t.warmup_steps, t.max_steps, t.decay_steps, t.decay_shape};
  const std::int64_t B = config.data.micro_batch_size, T = config.data.seq_len;
  const auto plan = [&] {
    const bool rounded = model_->dtype() != DType::f32 || context_->round_bf16;
    buffers_ = plan_parameters(parameters_, optimizer_memory_, model_->parameters(), model_->dtype(),
                               t.grad_dtype == "bf16" ? DType::bf16 : DType::f32, rounded);
    model_->bind(buffers_.params, buffers_.gradients);
    const OptimizerOptions options{static_cast<float>(t.beta1), static_cast<float>(t.beta2),
                                   static_cast<float>(t.epsilon), static_cast<float>(t.weight_decay),
                                   static_cast<float>(t.grad_clip)};
    optimizer_ = std::make_unique<Optimizer>(model_->parameters(), buffers_, options, optimizer_memory_);
    tokens_ = io_.take(DType::i32, {B, T});
    targets_ = io_.take(DType::i32, {B, T});
    if (config.data.document_mask) first_key_ = io_.take(DType::i32, {B, T});
    losses_ = io_.take(DType::f32, {B * T});
    loss_total_ = io_.take(DType::i64, {1});
  };
  plan();
  for (Arena* a : {&parameters_, &optimizer_memory_, &io_}) a->bind();
  plan();
  plan_model(*model_, arenas_, B, T, true);
}

std::size_t TrainingState::memory_bytes() const {
  return parameters_.peak() + optimizer_memory_.peak() + io_.peak() + arenas_.activations.peak() +
         arenas_.scratch.peak();
}

void TrainingState::initialize(std::uint64_t seed) {
  const Buffer host(Device::cpu, static_cast<std::size_t>(buffers_.master.bytes()), "initial weights");
  const Tensor flat(host.data(), DType::f32, Device::cpu, {buffers_.master.numel()});
  initialize_parameters(model_->parameters(), seed, flat);
  context_->copy(buffers_.master.data, buffers_.master.device, flat.data, Device::cpu,
                 static_cast<std::size_t>(flat.bytes()));
  context_->zero(buffers_.m);
  context_->zero(buffers_.v);
  publish_weights();
}

void TrainingState::publish_weights() {
  if (buffers_.params.data == buffers_.master.data) return;
  const std::size_t n = static_cast<std::size_t>(buffers_.master.numel());
  std::vector<float> host(n);
  context_->copy(host.data(), Device::cpu, buffers_.master.data, buffers_.master.device, n * sizeof(float));
  context_->synchronize();
  if (buffers_.params.dtype == DType::bf16) {
    std::vector<std::uint16_t> rounded(n);
    std::transform(host.begin(), host.end(), rounded.begin(), bf16_bits);
    context_->copy(buffers_.params.data, buffers_.params.device, rounded.data(), Device::cpu,
                   n * sizeof(std::uint16_t));
  } else {
    if (context_->round_bf16) std::transform(host.begin(), host.end(), host.begin(), round_to_bf16);
    context_->copy(buffers_.params.data, buffers_.params.device, host.data(), Device::cpu, n * sizeof(float));
  }
  context_->synchronize();
}

ModelInput TrainingState::upload(Context& ctx, const Batch& batch) {
  const auto send = [&](const Tensor& to, const std::vector<std::int32_t>& from) {
    require(static_cast<std::int64_t>(from.size()) == to.numel(),
            "internal error: a batch of {} places, {} were planned", from.size(), to.numel());
    ctx.copy(to.data, to.device, from.data(), Device::cpu, from.size() * sizeof(std::int32_t));
  };
  send(tokens_, batch.tokens);
  send(targets_, batch.targets);
  if (!first_key_.empty()) send(first_key_, batch.first_key);
  return {tokens_, targets_, first_key_};
}

void TrainingState::begin_step(Context& ctx) {
  const OpScope scope(
      ctx, [&] { return OpWork{.kind = "zero gradients", .shape = "", .bytes = bytes_of({buffers_.gradients})}; });
  ctx.zero(buffers_.gradients);
  ctx.zero(loss_total_);
}

void TrainingState::micro_step(Context& ctx, const Batch& batch, float loss_scale) {
  model_->forward_backward(ctx, arenas_, upload(ctx, batch), loss_scale, losses_);
  sum_add(ctx, losses_, loss_total_);
}

void TrainingState::update(Context& ctx, std::int64_t step) {
  optimizer_->step(ctx, step + 1, schedule_.at(step));
}

double TrainingState::step_loss(Context& ctx, std::int64_t targets) const {
  double total = 0;
  ctx.copy(&total, Device::cpu, loss_total_.data, loss_total_.device, sizeof(double));
  ctx.synchronize();
  return total / static_cast<double>(targets);
}

}  // namespace sfa
