#include "train/training_memory.h"

#include "eval/loaded_model.h"

namespace sfa {

namespace {

DType storage_type(const Config& c, Device device) {
  return device == Device::cuda && wants_bf16(c.train.dtype, device) ? DType::bf16 : DType::f32;
}

}  // namespace

TrainingMemory::TrainingMemory(const Config& config, Device device)
    : model(make_model(config.model, device, storage_type(config, device))),
      arenas(device),
      round_bf16(device == Device::cpu && wants_bf16(config.train.dtype, device)),
      config_(config),
      weights_("weights", device),
      gradients_("gradients", device),
      optimizer_memory_("optimizer", device),
      batches_("batches", device) {
  require(device == Device::cuda || config.train.grad_dtype == "fp32",
          "train.grad_dtype: the CPU keeps gradients in fp32, '{}' is for GPUs", config.train.grad_dtype);
  plan();
  count_model(*model, arenas, config.data.micro_batch_size, config.data.seq_len, true);
}

// Everything but the model's activations and scratch. Runs twice: counting, and on the memory.
void TrainingMemory::plan() {
  const TrainConfig& t = config_.train;
  const std::int64_t B = config_.data.micro_batch_size, T = config_.data.seq_len;
  const bool rounded = model->dtype() != DType::f32 || round_bf16;
  buffers = plan_parameters({weights_, gradients_, optimizer_memory_}, model->parameters(), model->dtype(),
                            t.grad_dtype == "bf16" ? DType::bf16 : DType::f32, rounded);
  model->bind(buffers.params, buffers.gradients);
  const OptimizerOptions options{static_cast<float>(t.beta1), static_cast<float>(t.beta2),
                                 static_cast<float>(t.epsilon), static_cast<float>(t.weight_decay),
                                 static_cast<float>(t.grad_clip)};
  optimizer = std::make_unique<Optimizer>(model->parameters(), buffers, options, optimizer_memory_);
  io.tokens = batches_.take(DType::i32, {B, T});
  io.targets = batches_.take(DType::i32, {B, T});
  if (config_.data.document_mask) io.first_key = batches_.take(DType::i32, {B, T});
  io.losses = batches_.take(DType::f32, {B * T});
  io.loss_total = batches_.take(DType::i64, {1});
}

void TrainingMemory::bind() {
  for (Arena* a : {&weights_, &gradients_, &optimizer_memory_, &batches_}) a->bind();
  plan();
  bind_model(*model, arenas, config_.data.micro_batch_size, config_.data.seq_len);
}

std::vector<const Arena*> TrainingMemory::all_arenas() const {
  return {&weights_, &gradients_, &optimizer_memory_, &batches_, &arenas.activations, &arenas.scratch};
}

std::vector<MemoryPart> TrainingMemory::parts() const {
  std::vector<MemoryPart> all;
  for (const Arena* a : all_arenas()) all.push_back({a->name(), a->peak()});
  return all;
}

std::size_t TrainingMemory::bytes() const {
  std::size_t total = 0;
  for (const Arena* a : all_arenas()) total += a->peak();
  return total;
}

}  // namespace sfa
