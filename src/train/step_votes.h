// What ranks tell each other behind every step: whether one of them was asked to stop, or has heard that the guard
// halted the device. All of them act on it at the same step: one step later, so that nobody waits for the answer. One
// rank alone acts at once. And, when they report, which of them the others wait for.
#pragma once

#include "dist/control.h"

namespace sfa {

class StepVotes {
 public:
  struct Outcome {
    int stop_signal = 0;
    bool halted = false;
  };

  explicit StepVotes(ControlChannel& control) : control_(control) {}
  ~StepVotes();
  StepVotes(const StepVotes&) = delete;
  StepVotes& operator=(const StepVotes&) = delete;

  /// Behind a step. Every rank calls it and gets the same outcome.
  Outcome cast(const Outcome& mine);

 private:
  ControlChannel& control_;
  bool open_ = false;
};

/// Milliseconds of a rank's step: waiting for batches, waiting for other ranks, and all in all.
struct StepTimes {
  double data = 0, exchange = 0, all = 0;
  [[nodiscard]] double compute() const { return all - data - exchange; }
};

/// The rank that waits least for the others. Every rank calls it with its own times.
struct Slowest {
  int rank = 0;
  StepTimes times;
  double fastest_compute = 0;  // of all ranks
};
Slowest find_slowest(ControlChannel& control, const StepTimes& mine);

}  // namespace sfa
