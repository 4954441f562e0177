// TrainingState of trainer.h: one optimizer step on the memory of a run.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>
#include <utility>

#include "checkpoint/model_checkpoint.h"
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

void mark(const Context& ctx, const std::shared_ptr<void>& event) {
  if constexpr (kHasCuda) {
    if (event != nullptr) cuda_ops::record_event(ctx.cuda(), event.get());
  }
}

RankPlace place_of(const Communicator* c) {
  return c != nullptr ? RankPlace{c->rank(), c->size()} : RankPlace{};
}

}  // namespace

TrainingState::TrainingState(const Config& config, Device device, const MemoryLimits& limits,
                             Communicator* communicator)
    : context_(std::make_unique<Context>(device)),
      memory_(config, device, place_of(communicator)),
      communicator_(communicator != nullptr && communicator->size() > 1 ? communicator : nullptr) {
  context_->round_bf16 = memory_.round_bf16;
  const TrainConfig& t = config.train;
  schedule_ = {t.schedule, t.lr, t.min_lr, t.warmup_steps, t.max_steps, t.decay_steps, t.decay_shape};
  targets_ = static_cast<double>(config.data.batch_size * config.data.seq_len);
  require_memory(config, memory_, limits);
  memory_.bind();
  if (config.model.attention.distill_lambda > 0) distill_every_ = t.distill_every;
  if (config.model.attention.k_from > 0) k_steps_ = t.k_anneal_until * static_cast<double>(t.max_steps);
  // What ranks exchange stays outside of graphs, and a ring exchanges inside of every layer.
  graphs_ = device == Device::cuda && t.cuda_graphs && memory_.ring == nullptr;
  if (communicator_ == nullptr) return;
  if (memory_.ring != nullptr) memory_.ring->connect(*communicator_);
  // A micro-step on a CPU may take longer than dist.timeout_s: every block counts as getting on, forward and backward.
  memory_.model->on_attention = [this](std::int64_t, const AttentionState&) { tick(); };
  memory_.model->on_gradients_final = [this](std::int64_t, std::int64_t) { tick(); };
  all_micro_steps_ =
      config.data.batch_size / (config.data.micro_batch_size * group_place(config, place_of(communicator_)).groups);
  const Tensor& gradients = memory_.buffers.gradients;
  const auto element = static_cast<std::int64_t>(size_of(gradients.dtype));
  if (config.dist.zero == 2)
    sharded_ = std::make_unique<ShardedGradients>(*communicator_, memory_.gradient_places, memory_.owners,
                                                  memory_.model_gradients.flat, gradients);
  else
    buckets_ = std::make_unique<GradientBuckets>(
        *communicator_, gradients,
        GradientBuckets::Options{config.dist.bucket_mb * 1'000'000 / element, memory_.owners, memory_.staging});
  memory_.optimizer->set_sum_over_ranks([this](Context& ctx, const Tensor& doubles) {
    exchange([&] {
      communicator_->all_reduce_f64(ctx, doubles);
      communicator_->join(ctx);
    });
  });
  if constexpr (kHasCuda) {
    if (device == Device::cuda) {
      backward_done_ = cuda_ops::make_event();
      exchange_done_ = cuda_ops::make_event();
    }
  }
}

// Something with other ranks: the time it takes the host counts on the CPU, where it is through when it returns.
template <class Work>
void TrainingState::exchange(Work&& work) {
  const PhaseScope phase(communicator_->control(), Phase::communicate);
  const auto begin = std::chrono::steady_clock::now();
  work();
  if (context_->on_cuda()) return;
  exchange_ms_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

double TrainingState::take_exchange_ms() {
  if constexpr (kHasCuda) {
    if (exchange_done_ != nullptr)
      return cuda_ops::event_done(exchange_done_.get())
                 ? cuda_ops::milliseconds_between(backward_done_.get(), exchange_done_.get())
                 : 0;
  }
  return std::exchange(exchange_ms_, 0) + (memory_.ring != nullptr ? memory_.ring->take_wait_ms() : 0);
}

// Each rank has brought its part up to date.
void TrainingState::gather_weights(const Tensor& flat) {
  if (memory_.owners.empty()) return;
  exchange([&] {
    communicator_->all_gather(*context_, flat, memory_.owners);
    communicator_->join(*context_);
  });
}

void TrainingState::initialize(std::uint64_t seed, const std::function<void(const Tensor& flat)>& weights) {
  const ParameterBuffers& b = memory_.buffers;
  const Buffer host(Device::cpu, static_cast<std::size_t>(b.params.numel()) * sizeof(float), "initial weights");
  const Tensor flat(host.data(), DType::f32, Device::cpu, {b.params.numel()});
  initialize_parameters(memory_.model->parameters(), seed, flat);
  if (weights) weights(flat);
  set_weights(flat.slice(0, b.owned.begin, b.owned.count));
  context_->zero(b.m);
  context_->zero(b.v);
  reset_average();
  const std::int64_t window = memory_.optimizer->options().guard_window;
  memory_.optimizer->write_guard(*context_, {}, std::vector<float>(static_cast<std::size_t>(2 * window)));
  publish_weights();
}

// The owned part. Masters take f32 as it is; weights without masters are rounded.
void TrainingState::set_weights(const Tensor& flat) {
  const Tensor& to = memory_.buffers.master;
  const auto send = [&](const void* from) {
    context_->copy(to.data, to.device, from, Device::cpu, static_cast<std::size_t>(to.bytes()));
    context_->synchronize();
  };
  if (to.dtype == DType::f32) {
    if (!memory_.buffers.separate_master) round_output(*context_, flat);
    return send(flat.data);
  }
  std::vector<std::uint16_t> rounded(static_cast<std::size_t>(flat.numel()));
  std::transform(flat.as<float>(), flat.as<float>() + flat.numel(), rounded.begin(), bf16_bits);
  send(rounded.data());
}

void TrainingState::publish_weights() {
  const ParameterBuffers& b = memory_.buffers;
  if (b.separate_master) memory_.optimizer->publish(*context_, b.params);
  gather_weights(b.params);
}

void TrainingState::reset_average() {
  const ParameterBuffers& b = memory_.buffers;
  if (b.ema.empty()) return;
  const std::vector<float> weights = host_values(*context_, b.master);
  context_->copy(b.ema.data, b.ema.device, weights.data(), Device::cpu, weights.size() * sizeof(float));
  context_->synchronize();
}

void TrainingState::use_average(bool average) {
  const ParameterBuffers& b = memory_.buffers;
  require(!average || !memory_.ema_params.empty(), "internal error: no average of the weights was planned");
  if (average && memory_.ema_params.data != b.ema.data) {
    if (b.owned.count > 0) round_weights(*context_, {b.ema, memory_.ema_params.slice(0, b.owned.begin, b.owned.count)});
    gather_weights(memory_.ema_params);
  }
  memory_.model->bind(average ? memory_.ema_params : b.params, memory_.model_gradients);
}

std::string TrainingState::first_not_finite() {
  if (memory_.optimizer->all_finite(*context_)) return "";
  const ParameterBuffers& b = memory_.buffers;
  const ParameterList& list = memory_.model->parameters();
  const std::pair<const char*, Tensor> all[] = {{"param", b.master}, {"adam_m", b.m}, {"adam_v", b.v}, {"ema", b.ema}};
  for (const auto& [prefix, flat] : all) {
    if (flat.empty()) continue;
    for (const Parameter& p : list.all()) {
      const FlatRange part = intersection({p.offset, p.numel()}, b.owned);
      if (part.count == 0) continue;
      const std::vector<float> values = host_values(*context_, flat.slice(0, part.begin - b.owned.begin, part.count));
      if (!std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); }))
        return fmt::format("{}/{}", prefix, p.name);
    }
  }
  return "padding between parameters";
}

ModelInput TrainingState::upload(Context& ctx, const Batch& batch) {
  tick();
  const auto send = [&](const Tensor& to, const std::vector<std::int32_t>& from) {
    require(static_cast<std::int64_t>(from.size()) == to.numel(),
            "internal error: a batch of {} places, {} were planned", from.size(), to.numel());
    ctx.copy(to.data, to.device, from.data(), Device::cpu, from.size() * sizeof(std::int32_t));
  };
  send(memory_.io.tokens, batch.tokens);
  send(memory_.io.targets, batch.targets);
  if (!memory_.io.first_key.empty()) send(memory_.io.first_key, batch.first_key);
  const Tensor& weight = memory_.io.loss_weight;
  if (!weight.empty()) {
    const double counted = static_cast<double>(batch.step_targets);
    loss_weight_ = counted > 0 ? static_cast<float>(targets_ / counted) : 0.0f;
    ctx.copy(weight.data, weight.device, &loss_weight_, Device::cpu, sizeof loss_weight_);
  }
  return {memory_.io.tokens, memory_.io.targets, memory_.io.first_key, weight};
}

// A graph holds the k that it was recorded with. The first micro-step of another k is not recorded, as the first of
// all is not: it may load kernels, and a k of a single step is not worth a graph.
void TrainingState::anneal_k(std::int64_t step) {
  if (k_steps_ == 0) return;
  memory_.model->anneal_k(static_cast<double>(step) / k_steps_);
  std::vector<ActiveFeatures> now = memory_.model->active_features();
  if (now == training_with_) return;
  training_with_ = std::move(now);
  warm_ = distilling_warm_ = false;
  graph_ = distilling_graph_ = nullptr;
  cut_graph_.clear();
}

void TrainingState::begin_step(Context& ctx, std::int64_t step) {
  anneal_k(step);
  const OpScope scope(ctx, [&] {
    return OpWork{.kind = "zero gradients", .shape = "", .bytes = bytes_of({memory_.buffers.gradients})};
  });
  ctx.zero(memory_.buffers.gradients);
  if (sharded_ != nullptr) ctx.zero(memory_.model_gradients.flat);
  ctx.zero(memory_.io.loss_total);
  if (!memory_.io.balance_total.empty()) ctx.zero(memory_.io.balance_total);
  micro_steps_ = 0;
  Model::Distill& distill = memory_.model->distill;
  distill = {distill_every_ > 0 && step % distill_every_ == 0, memory_.io.distance_total};
  if (!distill.active) return;
  ctx.zero(distill.total);
  distilled_ = true;
}

double TrainingState::total_of(const Tensor& bits) {
  double total = 0;
  context_->copy(&total, Device::cpu, bits.data, context_->device(), sizeof total);
  context_->synchronize();
  return total;
}

std::optional<double> TrainingState::distance() {
  if (!distilled_) return std::nullopt;
  const ModelConfig& c = memory_.model->config();
  return total_of(memory_.io.distance_total) /
         (targets_ * static_cast<double>(c.num_hidden_layers * c.num_attention_heads));
}

std::optional<double> TrainingState::balance() {
  if (memory_.io.balance_total.empty()) return std::nullopt;
  const ModelConfig& c = memory_.model->config();
  return total_of(memory_.io.balance_total) /
         (targets_ * static_cast<double>(c.num_hidden_layers * (c.num_attention_heads + c.num_key_value_heads)));
}

// The first time algorithms are chosen and small buffers made, which can't be recorded; an observer sees ops alone.
template <class Work>
bool TrainingState::replayed(Context& ctx, float loss_scale, Work&& work) {
  if constexpr (kHasCuda) {
    const bool distilling = memory_.model->distill.active;
    if (!graphs_ || !(distilling ? distilling_warm_ : warm_) || ctx.observer != nullptr) return false;
    if (graph_scale_ != loss_scale) graph_ = distilling_graph_ = nullptr;
    graph_scale_ = loss_scale;
    std::shared_ptr<void>& graph = distilling ? distilling_graph_ : graph_;
    if (graph == nullptr) graph = record(ctx, work);
    cuda_ops::replay(ctx.cuda(), graph.get());
    return true;
  } else {
    return false;
  }
}

void TrainingState::micro_step(Context& ctx, const Batch& batch, float loss_scale) {
  const ModelInput input = upload(ctx, batch);
  if (!memory_.io.loss_weight.empty()) counted_targets_ = batch.step_targets;
  const auto work = [&] {
    memory_.model->forward_backward(ctx, memory_.arenas, input, loss_scale, memory_.io.losses);
    sum_add(ctx, memory_.io.losses, memory_.io.loss_total);
  };
  const bool last = communicator_ != nullptr && micro_steps_ + 1 == all_micro_steps_;
  if (last || sharded_ != nullptr)
    cut_micro_step(ctx, loss_scale, work);
  else if (!replayed(ctx, loss_scale, work))
    work();
  (memory_.model->distill.active ? distilling_warm_ : warm_) = true;
  if (last) mark(ctx, backward_done_);
  if (sharded_ != nullptr) exchange([&] { sharded_->finish(ctx, last); });
  queue_mark(ctx);
  if (micro_steps_++ == 0) memory_.optimizer->measure_small_batch(ctx);
}

void TrainingState::tick() {
  if (communicator_ != nullptr) communicator_->control().tick();
}

// Behind a micro-step.
void TrainingState::queue_mark(Context& ctx) {
  if (communicator_ == nullptr || !ctx.on_cuda()) return;
  if constexpr (kHasCuda) {
    look_at_marks();
    if (spare_events_.empty()) spare_events_.push_back(cuda_ops::make_event());
    queued_micro_steps_.push_back(std::move(spare_events_.back()));
    spare_events_.pop_back();
    mark(ctx, queued_micro_steps_.back());
  }
}

// Counts what the device has finished. A device that hangs finishes nothing.
void TrainingState::look_at_marks() {
  if constexpr (kHasCuda) {
    while (!queued_micro_steps_.empty() && cuda_ops::event_done(queued_micro_steps_.front().get())) {
      tick();
      spare_events_.push_back(std::move(queued_micro_steps_.front()));
      queued_micro_steps_.pop_front();
    }
  }
}

void TrainingState::wait_for_micro_steps() {
  for (look_at_marks(); !queued_micro_steps_.empty(); look_at_marks())
    std::this_thread::sleep_for(std::chrono::microseconds(100));
}

void TrainingState::final(const FlatRange& range) {
  tick();
  exchange([&] {
    if (sharded_ != nullptr)
      sharded_->final(*context_, range.begin, range.end());
    else
      buckets_->final(*context_, range.begin, range.end());
  });
}

// Sums over ranks begin where gradients become final. They stay outside of graphs, so a recorded micro-step is one
// graph from each such place to the next.
void TrainingState::cut_micro_step(Context& ctx, float loss_scale, const std::function<void()>& work) {
  auto& hook = memory_.model->on_gradients_final;
  const auto ticks = hook;
  if constexpr (kHasCuda) {
    // Steps that distill are few: they are not recorded.
    if (graphs_ && warm_ && ctx.observer == nullptr && !memory_.model->distill.active) {
      if (cut_graph_.empty() || cut_graph_scale_ != loss_scale) {
        cut_graph_.clear();
        hook = [&](std::int64_t begin, std::int64_t end) {
          cut_graph_.push_back({cuda_ops::recording_end(ctx.cuda()), {begin, end - begin}});
          cuda_ops::recording_begin(ctx.cuda());
        };
        std::shared_ptr<void> rest = record(ctx, work);
        cut_graph_.push_back({std::move(rest), {}});
        cut_graph_scale_ = loss_scale;
        hook = ticks;
      }
      for (const GraphPart& part : cut_graph_) {
        cuda_ops::replay(ctx.cuda(), part.graph.get());
        if (part.final.count > 0) final(part.final);
      }
      return;
    }
  }
  hook = [&](std::int64_t begin, std::int64_t end) { final({begin, end - begin}); };
  work();
  hook = ticks;
}

void TrainingState::update(Context& ctx, std::int64_t step) {
  if (communicator_ != nullptr) {
    exchange([&] {
      communicator_->all_reduce_f64(ctx, memory_.io.loss_total);
      if (memory_.model->distill.active) communicator_->all_reduce_f64(ctx, memory_.io.distance_total);
      if (!memory_.io.balance_total.empty()) communicator_->all_reduce_f64(ctx, memory_.io.balance_total);
      if (buckets_ != nullptr) buckets_->finish(ctx);
      communicator_->join(ctx);
    });
    mark(ctx, exchange_done_);
  }
  const double counted = memory_.io.loss_weight.empty() ? targets_ : static_cast<double>(counted_targets_);
  memory_.optimizer->step(ctx, step + 1, schedule_.at(step),
                          {memory_.io.loss_total, counted > 0 ? 1.0 / counted : 0.0});
  gather_weights(memory_.buffers.params);
}

}  // namespace sfa
