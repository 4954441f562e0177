// A model in training on any device, as the training loop drives it: planned memory, micro-batches, optimizer,
// schedule.
#pragma once

#include <memory>
#include <string>

#include "models/model.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "support/tensors.h"

namespace sfa::test {

struct TrainingRun {
  Context& ctx;
  std::unique_ptr<Model> model;
  Arena weights, optimizer_memory, losses_memory;
  ModelArenas arenas;
  ParameterBuffers buffers;
  std::unique_ptr<Optimizer> optimizer;
  Tensor tokens, targets, first_key, losses;
  std::int64_t step_number = 0;

  TrainingRun(Context& context, ModelConfig config, std::int64_t B, std::int64_t T, DType dtype = DType::f32)
      : ctx(context),
        weights("parameters", context.device()),
        optimizer_memory("optimizer", context.device()),
        losses_memory("batch", context.device()),
        arenas(context.device()) {
    config.resolve();
    model = make_model(config, ctx.device(), dtype);
    const auto plan = [&] {
      buffers = plan_parameters({weights, weights, optimizer_memory}, model->parameters(), dtype, DType::f32,
                                dtype != DType::f32 || ctx.round_bf16);
      optimizer = std::make_unique<Optimizer>(model->parameters(), buffers, OptimizerOptions{}, optimizer_memory);
      tokens = losses_memory.take(DType::i32, {B, T});
      targets = losses_memory.take(DType::i32, {B, T});
      first_key = losses_memory.take(DType::i32, {B, T});
      losses = losses_memory.take(DType::f32, {B * T});
    };
    plan();
    weights.bind();
    optimizer_memory.bind();
    losses_memory.bind();
    plan();
    model->bind(buffers.params, buffers.gradients);
    plan_model(*model, arenas, B, T, true);
  }

  /// The master weights; those that the model works with are rounded where it works in bf16.
  void set_weights(const std::vector<float>& flat) {
    const auto send = [&](const Tensor& to, const void* from) {
      ctx.copy(to.data, to.device, from, Device::cpu, static_cast<std::size_t>(to.bytes()));
      ctx.synchronize();
    };
    send(buffers.master, flat.data());
    if (buffers.params.data == buffers.master.data) return;
    std::vector<std::uint16_t> bits;
    std::vector<float> rounded;
    for (float w : flat) {
      bits.push_back(bf16_bits(w));
      rounded.push_back(round_to_bf16(w));
    }
    if (model->dtype() == DType::bf16)
      send(buffers.params, bits.data());
    else
      send(buffers.params, rounded.data());
  }

  /// One micro-batch; the gradient of scale * sum of losses is added. first may be empty. Returns the losses.
  std::vector<float> micro_step(const std::int32_t* token, const std::int32_t* target, const std::int32_t* first,
                                float scale) {
    const std::size_t bytes = static_cast<std::size_t>(tokens.bytes());
    ctx.copy(tokens.data, ctx.device(), token, Device::cpu, bytes);
    ctx.copy(targets.data, ctx.device(), target, Device::cpu, bytes);
    if (first) ctx.copy(first_key.data, ctx.device(), first, Device::cpu, bytes);
    model->forward_backward(ctx, arenas, {tokens, targets, first ? first_key : Tensor{}}, scale, losses);
    return values_of(ctx, losses);
  }

  StepState update(float lr) {
    optimizer->step(ctx, ++step_number, lr);
    const StepState state = optimizer->read_state(ctx);
    ctx.zero(buffers.gradients);
    return state;
  }
};

}  // namespace sfa::test
