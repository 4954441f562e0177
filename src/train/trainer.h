// The training loop: batches -> forward and backward over micro-steps -> clipped AdamW -> metrics, validation,
// checkpoints.
//
// A run can be stopped at any moment and goes on bit for bit: everything that a step depends on is in the newest
// checkpoint (weights, moments, step, place in the data) or a pure function of the configuration and the step (learning
// rate, random numbers).
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "config/config.h"
#include "eval/perplexity.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"

namespace sfa {

/// The memory and compute side of a run: model, buffers, optimizer. Knows nothing of files.
class TrainingState {
 public:
  TrainingState(const Config& config, Device device);

  /// Seeded initial weights, zero moments.
  void initialize(std::uint64_t seed);

  /// Zeroes gradients and losses for a new optimizer step.
  void begin_step(Context& ctx);
  /// One micro-batch of host data; gradients and the loss accumulate. loss_scale is 1 / (targets of the optimizer
  /// step).
  void micro_step(Context& ctx, const Batch& batch, float loss_scale);
  /// Clips and updates; `step` counts from 0.
  void update(Context& ctx, std::int64_t step);
  /// Mean loss of the step (waits for the device). `targets` counts those of the whole step.
  double step_loss(Context& ctx, std::int64_t targets) const;

  [[nodiscard]] Context& context() { return *context_; }
  [[nodiscard]] Model& model() { return *model_; }
  [[nodiscard]] ModelArenas& arenas() { return arenas_; }
  [[nodiscard]] const ParameterBuffers& buffers() const { return buffers_; }
  [[nodiscard]] const Optimizer& optimizer() const { return *optimizer_; }
  [[nodiscard]] const Schedule& schedule() const { return schedule_; }
  /// Rounds the weights that the model uses from the f32 masters (after those were read from a checkpoint).
  void publish_weights();
  /// Uploads a host batch; valid until the next call.
  ModelInput upload(Context& ctx, const Batch& batch);
  [[nodiscard]] const Tensor& losses() const { return losses_; }
  [[nodiscard]] std::size_t memory_bytes() const;

 private:
  std::unique_ptr<Context> context_;
  std::unique_ptr<Model> model_;
  Arena parameters_, optimizer_memory_, io_;
  ModelArenas arenas_;
  ParameterBuffers buffers_;
  std::unique_ptr<Optimizer> optimizer_;
  Schedule schedule_;
  Tensor tokens_, targets_, first_key_, losses_, loss_total_;
};

/// Runs or resumes what `config` describes. Returns the process's exit code: 0 also when a signal stopped it after a
/// checkpoint.
int train(Config config);

}  // namespace sfa
