// A run in progress: what trainer.cpp (the loop) and run_saving.cpp (checkpoints) share.
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/model_checkpoint.h"
#include "core/progress.h"
#include "data/loader.h"
#include "train/guard_watch.h"
#include "train/metrics.h"
#include "train/run_folder.h"
#include "train/starting_weights.h"
#include "train/step_profiler.h"
#include "train/step_votes.h"
#include "train/trainer.h"

namespace sfa {

// What a run begins with; making it exchanges nothing between ranks.
struct Beginning {
  Config config;
  ShardSet shards;
  StartingWeights start;
  TrainingState state;
  std::unique_ptr<ValidationSet> validation;

  Beginning(Config c, const MemoryLimits& limits, Communicator& ranks);
};

class Run {
 public:
  Run(Beginning& beginning, const TrainHooks& hooks, Communicator& ranks);
  int go();

 private:
  void find_folder();
  void open_folder();
  void resume();
  void begin();
  void train_step(std::int64_t step);
  void validate(std::int64_t done);
  void save(std::int64_t done);
  void report_saved();
  void log_step(std::int64_t done);
  void load(const std::filesystem::path& checkpoint);
  void open_loader();
  void clear_bar() {
    if (bar_) bar_->finish();
  }
  [[nodiscard]] bool alone() const { return ranks_.size() == 1; }
  [[nodiscard]] bool first_rank() const { return ranks_.rank() == 0; }
  std::vector<std::pair<const char*, Tensor>> saved_buffers() const;
  std::filesystem::path newest_checkpoint();
  WriterGroup writers();
  StepVotes::Outcome vote();
  bool look_at_guard(bool wait);
  void note(const GuardEvent& event);
  void roll_back(const GuardEvent& event);

  const TrainHooks& hooks_;
  Communicator& ranks_;
  Config& config_;
  ShardSet& shards_;
  StartingWeights& start_;
  TrainingState& state_;
  std::unique_ptr<ValidationSet>& validation_;
  StepVotes votes_{ranks_.control()};
  StepProfiler profiler_{state_.context(), config_.train.profile_steps};
  RunFolder folder_;
  std::int64_t step_ = 0;         // optimizer steps done
  std::int64_t next_sample_ = 0;  // place in the data at which the loader was opened,
  std::int64_t opened_step_ = 0;  // and the step
  std::int64_t rollbacks_ = 0;    // of the whole run
  std::unique_ptr<Loader> loader_;
  std::unique_ptr<RunMetrics> metrics_;
  std::unique_ptr<GuardWatch> watch_;
  std::unique_ptr<BackgroundCheckpoint> background_;
  bool saving_ = false;          // a checkpoint in the background has not been reported yet
  std::optional<Progress> bar_;  // on a terminal
  std::chrono::steady_clock::time_point interval_start_ = std::chrono::steady_clock::now();
  std::int64_t interval_steps_ = 0;
  double tokens_per_second_ = 0;
};

}  // namespace sfa
