// What ranks tell each other behind every step: whether one of them was asked to stop, or has heard that the guard halted
// the device, and how long data, computing and waiting took it. All of them act on it at the same step: one step later,
// so that nobody waits for the answer. One rank alone acts at once.
#pragma once

#include <string>
#include <vector>

#include "dist/control.h"

namespace sfa {

/// Milliseconds of a rank's steps: waiting for batches, waiting for other ranks, and all in all.
struct StepTimes {
  double data = 0, exchange = 0, all = 0;
  [[nodiscard]] double compute() const { return all - data - exchange; }
};

class StepVotes {
 public:
  struct Outcome {
    int stop_signal = 0;
    bool halted = false;
  };

  explicit StepVotes(ControlChannel& control) : control_(control), times_(static_cast<std::size_t>(control.size())) {}
  ~StepVotes();
  StepVotes(const StepVotes&) = delete;
  StepVotes& operator=(const StepVotes&) = delete;

  /// Behind a step. Every rank calls it and gets the same outcome.
  Outcome cast(const Outcome& mine, const StepTimes& times);

  /// Of several ranks: "slowest rank 2 (node1, process 77): data 0.1, compute 80.2, exchange 1.1 ms; ..." since the last
  /// call, a step. The slowest is the one that waits least for the others.
  struct Slowest {
    int rank = -1;  // -1 = nothing to compare
    StepTimes times;
    double fastest_compute = 0;
  };
  Slowest take_slowest();

 private:
  std::vector<std::string> texts();

  ControlChannel& control_;
  bool open_ = false;
  std::vector<StepTimes> times_;
  double steps_ = 0;
};

}  // namespace sfa
