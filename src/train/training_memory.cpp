#include "train/training_memory.h"

#include <algorithm>

#include "dist/communicator.h"
#include "eval/loaded_model.h"

namespace sfa {

namespace {

DType storage_type(const Config& c, Device device) {
  return device == Device::cuda && wants_bf16(c.train.dtype, device) ? DType::bf16 : DType::f32;
}

GuardAction action_of(const std::string& name) {
  if (name == "skip") return GuardAction::skip;
  if (name == "stop") return GuardAction::stop;
  return name == "rollback" ? GuardAction::rollback : GuardAction::off;
}

OptimizerOptions optimizer_options(const Config& config, int ranks) {
  const TrainConfig& t = config.train;
  OptimizerOptions o{.beta1 = static_cast<float>(t.beta1),
                     .beta2 = static_cast<float>(t.beta2),
                     .epsilon = static_cast<float>(t.epsilon),
                     .weight_decay = static_cast<float>(t.weight_decay),
                     .max_norm = static_cast<float>(t.grad_clip)};
  o.guard = {.nonfinite = action_of(t.guard.nonfinite),
             .spike = action_of(t.guard.spike),
             .loss_threshold = static_cast<float>(t.guard.loss_threshold),
             .grad_norm_threshold = static_cast<float>(t.guard.grad_norm_threshold),
             .max_skips = static_cast<std::int32_t>(t.guard.max_skips)};
  o.guard_window = o.guard.spike == GuardAction::off ? 0 : t.guard.window;
  const auto tokens = [&](std::int64_t rows) { return static_cast<double>(rows * config.data.seq_len); };
  if (t.noise_scale)
    o.noise = {tokens(config.data.micro_batch_size), tokens(config.data.batch_size), static_cast<double>(ranks)};
  o.ema_decay = static_cast<float>(t.ema_decay);
  o.stochastic_rounding = t.stochastic_rounding;
  o.seed = static_cast<std::uint64_t>(config.seed);
  return o;
}

}  // namespace

TrainingMemory::TrainingMemory(const Config& config, Device device, RankPlace place)
    : model(make_model(config.model, device, storage_type(config, device))),
      arenas(device),
      round_bf16(device == Device::cpu && wants_bf16(config.train.dtype, device)),
      config_(config),
      place_(place),
      weights_("weights", device),
      gradients_("gradients", device),
      optimizer_memory_("optimizer", device),
      batches_("batches", device) {
  require(device == Device::cuda || config.train.grad_dtype == "fp32",
          "train.grad_dtype: the CPU keeps gradients in fp32, '{}' is for GPUs", config.train.grad_dtype);
  require(!config.train.stochastic_rounding || wants_bf16(config.train.dtype, device),
          "train.stochastic_rounding: weights are fp32 on the {} unless train.dtype is bf16", name_of(device));
  if (config.dist.zero > 0 && place.size > 1)
    owners = split_evenly(model->parameters().flat_size(), place.size, ParameterList::kAlignment);
  if (config.dist.zero == 2 && place.size > 1) gradient_places = gradients_in_turns(model->parameters());
  if (config.dist.context_parallel > 1) {
    require(place.size % config.dist.context_parallel == 0, "internal error: dist.context_parallel={} on {} ranks",
            config.dist.context_parallel, place.size);
    ring = std::make_unique<ContextRing>(group_place(config, place));
    model->ring = ring.get();
  }
  plan();
  model->anneal_k(0);  // the step that takes most
  count_model(*model, arenas, rows(), row_tokens(), true);
  model->anneal_k(1);
}

// A micro-batch as the model sees it: with a ring two chunks a sequence.
std::int64_t TrainingMemory::rows() const {
  return config_.data.micro_batch_size * (ring != nullptr ? 2 : 1);
}
std::int64_t TrainingMemory::row_tokens() const {
  return ring != nullptr ? config_.data.seq_len / (2 * ring->size()) : config_.data.seq_len;
}

// Everything but the model's activations and scratch. Runs twice: counting, and on the memory.
void TrainingMemory::plan() {
  const TrainConfig& t = config_.train;
  const std::int64_t B = rows(), T = row_tokens();
  const bool rounded = model->dtype() != DType::f32 || round_bf16;
  const std::int64_t n = model->parameters().flat_size();
  const FlatRange owned = owners.empty() ? FlatRange{0, n} : owners[static_cast<std::size_t>(place_.rank)];
  const DType grad_dtype = t.grad_dtype == "bf16" ? DType::bf16 : DType::f32;
  const bool in_turns = gradient_places.size > 0;
  buffers = plan_parameters({weights_, gradients_, optimizer_memory_}, model->parameters(),
                            {model->dtype(), grad_dtype, rounded && t.master_weights == "fp32", owned, in_turns});
  model_gradients = in_turns ? FlatMemory(gradients_.take(grad_dtype, {gradient_places.size}), gradient_places.offsets)
                             : FlatMemory(buffers.gradients);
  if (t.ema_decay > 0) buffers.ema = optimizer_memory_.take(DType::f32, {owned.count});
  if (t.ema_validation) ema_params = rounded || buffers.sharded() ? weights_.take(model->dtype(), {n}) : buffers.ema;
  if (place_.size > 1 && config_.dist.reduce_dtype == "fp32" && grad_dtype == DType::bf16)
    staging = gradients_.take(DType::f32, {std::min(n, config_.dist.bucket_mb * 250'000)});
  model->bind(buffers.params, model_gradients);
  optimizer = std::make_unique<Optimizer>(model->parameters(), buffers, optimizer_options(config_, place_.size),
                                          optimizer_memory_);
  io.tokens = batches_.take(DType::i32, {B, T});
  io.targets = batches_.take(DType::i32, {B, T});
  if (config_.data.document_mask)
    io.first_key =
        ring != nullptr ? batches_.take(DType::i32, {3 * ring->size(), B, T}) : batches_.take(DType::i32, {B, T});
  if (t.loss_mask != "none") io.loss_weight = batches_.take(DType::f32, {1});
  io.losses = batches_.take(DType::f32, {B * T});
  io.loss_total = batches_.take(DType::i64, {1});
  if (config_.model.attention.distill_lambda > 0) io.distance_total = batches_.take(DType::i64, {1});
  if (config_.model.attention.balance > 0) io.balance_total = batches_.take(DType::i64, {1});
  model->balance_total = io.balance_total;
}

void TrainingMemory::bind() {
  for (Arena* a : {&weights_, &gradients_, &optimizer_memory_, &batches_}) a->bind();
  plan();
  bind_model(*model, arenas, rows(), row_tokens());
}

Config for_ranks(Config config, int ranks) {
  DataConfig& d = config.data;
  const std::int64_t together = config.dist.context_parallel;
  require(ranks % together == 0,
          "dist.context_parallel: {} rank{} can't be shared out into groups of {}, which share a sequence each", ranks,
          ranks == 1 ? "" : "s", together);
  if (ranks == 1) return config;
  const std::int64_t groups = ranks / together;
  require(d.batch_size % groups == 0, "data.batch_size: {} sequences can't be shared evenly among {} {}", d.batch_size,
          groups, together == 1 ? "ranks" : "groups of ranks");
  const std::int64_t share = d.batch_size / groups;
  d.micro_batch_size = std::min(d.micro_batch_size, share);
  while (share % d.micro_batch_size != 0) --d.micro_batch_size;
  require(config.dist.reduce_dtype == "auto" || config.dist.zero < 2 || config.train.grad_dtype == "fp32",
          "dist.reduce_dtype: fp32 sums of bf16 gradients are for dist.zero 0 and 1");
  require(!config.train.noise_scale || config.dist.zero < 2,
          "train.noise_scale: needs a rank's own gradients, which dist.zero=2 does not keep");
  require(!config.train.noise_scale || share >= 2 * d.micro_batch_size,
          "train.noise_scale: compares the gradient of a rank's first micro-step with that of all, so "
          "data.micro_batch_size = {} must be at most half of its share of data.batch_size, {}",
          d.micro_batch_size, share);
  return config;
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
