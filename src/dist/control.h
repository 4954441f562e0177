// What ranks tell each other beside tensors: short texts, and signs of life. Every rank keeps one connection to rank 0
// and one thread that listens to it, so that a rank that waits for tensors still hears.
//
// gather() is the one exchange: every rank gives a text, all get all of them. Barrier, broadcast and agreement are made
// of it. Exchanges of different purposes run side by side on lanes; on one lane every rank makes the same ones in the
// same order.
//
// Faults. A rank beats twice a second, with what it is doing. Rank 0 ends the job when a connection ends without a
// goodbye (the process died; also while others close already), when a rank has not been heard for `timeout_s` (stopped,
// machine gone) or when one has not got on for so long (a hang; named is the one that is furthest behind and does not
// wait for others). A rank that throws says so itself. Ending means: one line with rank, host, step and cause on rank
// 0, or on whoever finds rank 0 gone; then every process leaves with exit code 1 at once.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "dist/rendezvous.h"

namespace sfa {

/// What a rank is doing, as its beats tell.
enum class Phase : std::uint8_t { start, data, compute, communicate, validate, save, idle, close };
std::string_view name_of(Phase phase);

/// An Error that all ranks throw together; only rank 0's has a sentence.
class AgreedError : public Error {
 public:
  using Error::Error;
};

class ControlChannel {
 public:
  /// kClose is the channel's own: what ends it is mistaken for no other exchange.
  enum Lane : std::uint32_t { kMain, kVote, kCheckpoint, kClose, kLanes };

  /// Alone: every exchange is with itself.
  ControlChannel();
  /// Connects the ranks. `line` prints a fault's line; the process ends behind it.
  ControlChannel(const dist::Meeting& meeting, std::function<void(const std::string&)> line);
  ~ControlChannel();
  ControlChannel(const ControlChannel&) = delete;
  ControlChannel& operator=(const ControlChannel&) = delete;

  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return size_; }
  /// "rank 3 (node7, process 4711)".
  [[nodiscard]] std::string name_of_rank(int rank) const;

  /// Texts of all ranks in order. Every rank calls it; it waits for the last.
  std::vector<std::string> gather(Lane lane, const std::string& mine);
  /// The same in two halves, so that other work can be done between; at most one open on a lane.
  void begin_gather(Lane lane, const std::string& mine);
  std::vector<std::string> end_gather(Lane lane);
  /// Rank 0's text.
  std::string broadcast(Lane lane, const std::string& text) { return gather(lane, rank_ == 0 ? text : "").front(); }
  void barrier(Lane lane) { gather(lane, ""); }
  /// Runs `work`, which exchanges nothing, on every rank; when it throws on any, all throw AgreedError with the first
  /// failing rank's sentence.
  void agree(const std::function<void()>& work);

  /// What the next beats tell. A change, and every tick(), counts as getting on. Phase::idle is not watched.
  void at(std::int64_t step, Phase phase);
  /// Changes the phase alone; returns the one before.
  Phase in(Phase phase);
  void tick();
  /// Ends the job: this rank has failed. Does not return.
  [[noreturn]] void give_up(const std::string& why);
  /// Runs `work`, which other ranks may be waiting for: what it throws ends the job, but for AgreedError, which all
  /// ranks throw. Alone every exception is thrown on.
  void or_give_up(const std::function<void()>& work);

 private:
  struct Impl;
  int rank_ = 0, size_ = 1;
  std::unique_ptr<Impl> impl_;
};

/// The phase while the scope lives.
class PhaseScope {
 public:
  PhaseScope(ControlChannel& control, Phase phase) : control_(control), before_(control.in(phase)) {}
  ~PhaseScope() { control_.in(before_); }
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;

 private:
  ControlChannel& control_;
  Phase before_;
};

}  // namespace sfa
