// The training loop: batches -> forward and backward over micro-steps -> clipped AdamW -> metrics, validation,
// checkpoints.
//
// A run can be stopped at any moment and goes on bit for bit: everything that a step depends on is in the newest
// checkpoint (weights, moments, guard, step, place in the data) or a pure function of the configuration and the step
// (learning rate, random numbers).
#pragma once

#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "dist/gradient_buckets.h"
#include "dist/sharded_gradients.h"
#include "eval/perplexity.h"
#include "optim/schedule.h"
#include "train/memory_plan.h"
#include "train/training_memory.h"

namespace sfa {

/// The memory and compute side of a run: model, buffers, optimizer, and the sums over ranks. Knows nothing of files.
/// Every rank of several makes the same calls; initialize, micro_step, update, publish_weights and use_average exchange
/// tensors.
class TrainingState {
 public:
  /// Plans the memory and allocates it; exchanges nothing. Throws Error, with nothing allocated, when it is more than
  /// there is. `communicator` (null = one rank) must outlive the state, and the configuration be that of for_ranks().
  TrainingState(const Config& config, Device device, const MemoryLimits& limits = {},
                Communicator* communicator = nullptr);

  /// All ranks together, before the first step: gradients are summed by copies between cards where that serves them
  /// (Communicator::share). Whether they are.
  bool share_gradients() { return sharded_ != nullptr && sharded_->share(); }

  /// Seeded initial weights, zero moments, a guard that has seen nothing. `weights` may put others in their place
  /// (flat f32 in host memory).
  void initialize(std::uint64_t seed, const std::function<void(const Tensor& flat)>& weights = {});

  /// Zeroes gradients and losses for a new optimizer step, and sets how many features are selected in it
  /// (train.k_anneal); `step` counts from 0.
  void begin_step(Context& ctx, std::int64_t step = 0);
  /// One micro-batch of host data; gradients and the loss accumulate. loss_scale is 1 / (targets of the optimizer
  /// step, over all ranks, counted or not). During the last one of a step the sums over ranks begin.
  void micro_step(Context& ctx, const Batch& batch, float loss_scale);
  /// Clips and updates; `step` counts from 0.
  void update(Context& ctx, std::int64_t step);
  [[nodiscard]] Context& context() { return *context_; }
  [[nodiscard]] Model& model() { return *memory_.model; }
  [[nodiscard]] ModelArenas& arenas() { return memory_.arenas; }
  [[nodiscard]] const ParameterBuffers& buffers() const { return memory_.buffers; }
  [[nodiscard]] const Optimizer& optimizer() const { return *memory_.optimizer; }
  /// train.distill: the newest distilled step's mean squared distance of a head, layer and token (waits for the
  /// device); nothing when there was none.
  std::optional<double> distance();
  /// model.attention.balance: the newest step's mean load balance over layers, heads, sides and tokens, without LAMBDA
  /// (waits for the device); nothing without it.
  std::optional<double> balance();
  /// train.loss_mask: the targets that the newest step counts, over all ranks.
  [[nodiscard]] std::int64_t counted_targets() const { return counted_targets_; }
  /// [1] i64, the bits of a double: the sum of the step's losses so far.
  [[nodiscard]] const Tensor& loss_total() const { return memory_.io.loss_total; }
  [[nodiscard]] const Schedule& schedule() const { return schedule_; }
  /// Rounds the weights that the model uses from the f32 masters, as the last update did (after masters and guard were
  /// read from a checkpoint).
  void publish_weights();
  /// The running average begins again from the weights.
  void reset_average();
  /// Lets the model compute with the average of the weights (train.ema_validation), or with the weights again.
  void use_average(bool average);
  /// "adam_v/wte.weight": the first tensor of the state that holds NaN or infinity; empty when all is finite (waits for
  /// the device).
  std::string first_not_finite();
  /// Uploads a host batch; valid until the next call.
  ModelInput upload(Context& ctx, const Batch& batch);
  [[nodiscard]] const Tensor& losses() const { return memory_.io.losses; }
  [[nodiscard]] const TrainingMemory& memory() const { return memory_; }
  /// Milliseconds in which computing waited for other ranks, since the last call: on the CPU of all steps; on a GPU of
  /// the last step, where the host knows them by now.
  double take_exchange_ms();
  /// With other ranks on a GPU: waits for the micro-steps queued so far, each of which counts as getting on
  /// (ControlChannel::tick) when the device has finished it. Otherwise there is nothing to wait for.
  void wait_for_micro_steps();

 private:
  std::unique_ptr<Context> context_;
  TrainingMemory memory_;
  void set_weights(const Tensor& flat);
  double total_of(const Tensor& bits);
  template <class Work>
  void exchange(Work&& work);
  void gather_weights(const Tensor& flat);
  void final(const FlatRange& range);
  void tick();
  void queue_mark(Context& ctx);
  void look_at_marks();
  void cut_micro_step(Context& ctx, float loss_scale, const std::function<void()>& work);

  Communicator* communicator_;
  std::unique_ptr<GradientBuckets> buckets_;   // several ranks, dist.zero 0 and 1
  std::unique_ptr<ShardedGradients> sharded_;  // dist.zero 2
  double exchange_ms_ = 0;
  std::shared_ptr<void> backward_done_, exchange_done_;  // events of the last step, on a GPU
  // With other ranks on a GPU: events behind the micro-steps that the device had not finished when last asked, oldest
  // first, and events to use again.
  std::deque<std::shared_ptr<void>> queued_micro_steps_;
  std::vector<std::shared_ptr<void>> spare_events_;

  Schedule schedule_;
  // The micro-step as a CUDA graph, for the one loss_scale of the run; null until it is recorded.
  bool graphs_ = false, warm_ = false, distilling_warm_ = false;
  std::shared_ptr<void> graph_;
  float graph_scale_ = 0;
  // A micro-step cut where gradients become final: sums over ranks are queued between the parts. It is the last of a
  // step, or with dist.zero=2 each.
  struct GraphPart {
    std::shared_ptr<void> graph;
    FlatRange final;  // behind it; count 0 = none
  };
  std::vector<GraphPart> cut_graph_;
  float cut_graph_scale_ = 0;
  std::shared_ptr<void> distilling_graph_;  // of steps that distill, where not all do
  std::int64_t distill_every_ = 0;          // 0 = never
  bool distilled_ = false;                  // distance_total is of a step
  template <class Work>
  bool replayed(Context& ctx, float loss_scale, Work&& work);
  void anneal_k(std::int64_t step);
  double k_steps_ = 0;                                  // train.k_anneal: steps until k is reached; 0 = no annealing
  std::vector<ActiveFeatures> training_with_;           // what graphs were recorded with
  double targets_ = 1;                                  // of a step
  std::int64_t counted_targets_ = 0;                    // of them, with train.loss_mask
  float loss_weight_ = 0;                               // on its way to the device
  std::int64_t micro_steps_ = 0, all_micro_steps_ = 1;  // done in this step; of a step and rank
};

/// For tests: looks at, or spoils, what a step has computed before the optimizer sees it.
struct TrainHooks {
  /// `step` from 1; `first_sample` of the step's batches.
  std::function<void(TrainingState& state, std::int64_t step, std::int64_t first_sample)> before_update;
};

/// Runs or resumes what `config` describes. Returns the process's exit code: 0 also when a signal stopped it after a
/// checkpoint. A run that needs more memory than `limits` is refused before anything is allocated or written.
int train(Config config, const MemoryLimits& limits = {}, const TrainHooks& hooks = {});

}  // namespace sfa
