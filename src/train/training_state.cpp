// TrainingState of trainer.h: one optimizer step on the memory of a run.
#include <algorithm>

#include "core/build_config.h"
#include "core/device_cuda.h"
#include "core/observer.h"
#include "ops/reduce/reduce.h"
#include "train/trainer.h"

namespace sfa {
namespace {

template <class Work>
std::shared_ptr<void> record(Context& ctx, Work&& work) {
  cuda_ops::recording_begin(ctx.cuda());
  try {
    work();
  } catch (...) {
    cuda_ops::recording_abort(ctx.cuda());
    throw;
  }
  return cuda_ops::recording_end(ctx.cuda());
}

}  // namespace

TrainingState::TrainingState(const Config& config, Device device, const MemoryLimits& limits)
    : context_(std::make_unique<Context>(device)), memory_(config, device) {
  context_->round_bf16 = memory_.round_bf16;
  const TrainConfig& t = config.train;
  schedule_ = {t.schedule, t.lr, t.min_lr, t.warmup_steps, t.max_steps, t.decay_steps, t.decay_shape};
  require_memory(config, memory_, limits);
  memory_.bind();
  graphs_ = device == Device::cuda && t.cuda_graphs;
}

void TrainingState::initialize(std::uint64_t seed) {
  const Buffer host(Device::cpu, static_cast<std::size_t>(memory_.buffers.master.bytes()), "initial weights");
  const Tensor flat(host.data(), DType::f32, Device::cpu, {memory_.buffers.master.numel()});
  initialize_parameters(memory_.model->parameters(), seed, flat);
  context_->copy(memory_.buffers.master.data, memory_.buffers.master.device, flat.data, Device::cpu,
                 static_cast<std::size_t>(flat.bytes()));
  context_->zero(memory_.buffers.m);
  context_->zero(memory_.buffers.v);
  publish_weights();
}

void TrainingState::publish_weights() {
  if (memory_.buffers.params.data == memory_.buffers.master.data) return;
  const std::size_t n = static_cast<std::size_t>(memory_.buffers.master.numel());
  std::vector<float> host(n);
  context_->copy(host.data(), Device::cpu, memory_.buffers.master.data, memory_.buffers.master.device,
                 n * sizeof(float));
  context_->synchronize();
  if (memory_.buffers.params.dtype == DType::bf16) {
    std::vector<std::uint16_t> rounded(n);
    std::transform(host.begin(), host.end(), rounded.begin(), bf16_bits);
    context_->copy(memory_.buffers.params.data, memory_.buffers.params.device, rounded.data(), Device::cpu,
                   n * sizeof(std::uint16_t));
  } else {
    if (context_->round_bf16) std::transform(host.begin(), host.end(), host.begin(), round_to_bf16);
    context_->copy(memory_.buffers.params.data, memory_.buffers.params.device, host.data(), Device::cpu,
                   n * sizeof(float));
  }
  context_->synchronize();
}

ModelInput TrainingState::upload(Context& ctx, const Batch& batch) {
  const auto send = [&](const Tensor& to, const std::vector<std::int32_t>& from) {
    require(static_cast<std::int64_t>(from.size()) == to.numel(),
            "internal error: a batch of {} places, {} were planned", from.size(), to.numel());
    ctx.copy(to.data, to.device, from.data(), Device::cpu, from.size() * sizeof(std::int32_t));
  };
  send(memory_.io.tokens, batch.tokens);
  send(memory_.io.targets, batch.targets);
  if (!memory_.io.first_key.empty()) send(memory_.io.first_key, batch.first_key);
  return {memory_.io.tokens, memory_.io.targets, memory_.io.first_key};
}

void TrainingState::begin_step(Context& ctx) {
  const OpScope scope(ctx, [&] {
    return OpWork{.kind = "zero gradients", .shape = "", .bytes = bytes_of({memory_.buffers.gradients})};
  });
  ctx.zero(memory_.buffers.gradients);
  ctx.zero(memory_.io.loss_total);
}

void TrainingState::micro_step(Context& ctx, const Batch& batch, float loss_scale) {
  const ModelInput input = upload(ctx, batch);
  const auto work = [&] {
    memory_.model->forward_backward(ctx, memory_.arenas, input, loss_scale, memory_.io.losses);
    sum_add(ctx, memory_.io.losses, memory_.io.loss_total);
  };
  if constexpr (kHasCuda) {
    // The first time algorithms are chosen and small buffers made, which can't be recorded; an observer sees ops alone.
    if (graphs_ && warm_ && ctx.observer == nullptr) {
      if (graph_ == nullptr || graph_scale_ != loss_scale) {
        graph_ = record(ctx, work);
        graph_scale_ = loss_scale;
      }
      return cuda_ops::replay(ctx.cuda(), graph_.get());
    }
  }
  work();
  warm_ = true;
}

void TrainingState::update(Context& ctx, std::int64_t step) {
  memory_.optimizer->step(ctx, step + 1, schedule_.at(step));
}

double TrainingState::step_loss(Context& ctx, std::int64_t targets) const {
  double total = 0;
  ctx.copy(&total, Device::cpu, memory_.io.loss_total.data, memory_.io.loss_total.device, sizeof(double));
  ctx.synchronize();
  return total / static_cast<double>(targets);
}

}  // namespace sfa
