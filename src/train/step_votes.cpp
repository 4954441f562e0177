#include "train/step_votes.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace sfa {
namespace {

struct Vote {
  StepVotes::Outcome outcome;
  StepTimes times;
};

std::string text_of(const Vote& vote) {
  return {reinterpret_cast<const char*>(&vote), sizeof vote};
}

}  // namespace

StepVotes::~StepVotes() {
  if (open_) control_.end_gather(ControlChannel::kVote);
}

StepVotes::Outcome StepVotes::cast(const Outcome& mine, const StepTimes& times) {
  if (control_.size() == 1) return mine;
  Outcome outcome;
  if (open_) {
    std::size_t rank = 0;
    for (const std::string& text : control_.end_gather(ControlChannel::kVote)) {
      Vote vote;
      require(text.size() == sizeof vote, "internal error: a vote of {} bytes", text.size());
      std::memcpy(static_cast<void*>(&vote), text.data(), sizeof vote);
      outcome.stop_signal = std::max(outcome.stop_signal, vote.outcome.stop_signal);
      outcome.halted = outcome.halted || vote.outcome.halted;
      StepTimes& sum = times_[rank++];
      sum.data += vote.times.data;
      sum.exchange += vote.times.exchange;
      sum.all += vote.times.all;
    }
    ++steps_;
  }
  control_.begin_gather(ControlChannel::kVote, text_of({mine, times}));
  open_ = true;
  return outcome;
}

StepVotes::Slowest StepVotes::take_slowest() {
  Slowest s;
  if (steps_ == 0) return s;
  const auto busy = [](const StepTimes& t) { return t.data + t.compute(); };
  const auto slow = std::max_element(times_.begin(), times_.end(),
                                     [&](const StepTimes& a, const StepTimes& b) { return busy(a) < busy(b); });
  const auto fast =
      std::min_element(times_.begin(), times_.end(),
                       [](const StepTimes& a, const StepTimes& b) { return a.compute() < b.compute(); });
  s = {static_cast<int>(slow - times_.begin()),
       {slow->data / steps_, slow->exchange / steps_, slow->all / steps_},
       fast->compute() / steps_};
  std::fill(times_.begin(), times_.end(), StepTimes{});
  steps_ = 0;
  return s;
}

}  // namespace sfa
