#include "eval/loaded_model.h"

#include <algorithm>

namespace sfa {

Device choose_device(const std::string& wanted) {
  std::string why;
  if (wanted == "cpu") return Device::cpu;
  const bool there = cuda_available(&why);
  require(there || wanted != "cuda", "device: cuda was asked for, but {}", why);
  return there ? Device::cuda : Device::cpu;
}

bool wants_bf16(const std::string& dtype, Device device) {
  return dtype == "bf16" || (dtype == "auto" && device == Device::cuda);
}

LoadedModel::LoadedModel(const LoadOptions& options)
    : source_(options.path), config_(source_.config(options.overrides)) {
  config_.model.attention.distill_lambda = 0;  // of training alone
  config_.model.attention.balance = 0;
  config_.model.attention.k_from = 0;
  config_.model.attention.as_cached = options.kv_cache;
  const Device device = choose_device(options.device);
  const bool bf16 = wants_bf16(options.dtype, device);
  const DType storage = bf16 && device == Device::cuda ? DType::bf16 : DType::f32;
  context_ = std::make_unique<Context>(device);
  context_->round_bf16 = bf16 && device == Device::cpu;
  model_ = make_model(config_.model, device, storage);
  source_.check(model_->parameters(), options.average);  // before memory is taken for what is not there
  weights_ = std::make_unique<Arena>("parameters", device);
  weights_->take(storage, {model_->parameters().flat_size()});
  weights_->bind();
  const Tensor flat = weights_->take(storage, {model_->parameters().flat_size()});
  source_.read(*context_, model_->parameters(), options.average, flat);
  round_output(*context_, flat);
  model_->bind(flat, Tensor{});
}

}  // namespace sfa
