#include "train/step_votes.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"

namespace sfa {
namespace {

template <class T>
std::string text_of(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
template <class T>
T from_text(const std::string& text) {
  T value;
  require(text.size() == sizeof value, "internal error: a rank sent {} bytes, {} were expected", text.size(),
          sizeof value);
  std::memcpy(static_cast<void*>(&value), text.data(), sizeof value);
  return value;
}

}  // namespace

StepVotes::~StepVotes() {
  if (open_) control_.end_gather(ControlChannel::kVote);
}

StepVotes::Outcome StepVotes::cast(const Outcome& mine) {
  if (control_.size() == 1) return mine;
  Outcome outcome;
  if (open_) {
    for (const std::string& text : control_.end_gather(ControlChannel::kVote)) {
      const auto vote = from_text<Outcome>(text);
      outcome.stop_signal = std::max(outcome.stop_signal, vote.stop_signal);
      outcome.halted = outcome.halted || vote.halted;
    }
  }
  control_.begin_gather(ControlChannel::kVote, text_of(mine));
  open_ = true;
  return outcome;
}

Slowest find_slowest(ControlChannel& control, const StepTimes& mine) {
  Slowest slowest;
  double longest = -1;
  int rank = 0;
  for (const std::string& text : control.gather(ControlChannel::kMain, text_of(mine))) {
    const auto times = from_text<StepTimes>(text);
    if (times.data + times.compute() > longest) {
      longest = times.data + times.compute();
      slowest.rank = rank;
      slowest.times = times;
    }
    slowest.fastest_compute = rank == 0 ? times.compute() : std::min(slowest.fastest_compute, times.compute());
    ++rank;
  }
  return slowest;
}

}  // namespace sfa
