#include "dist/control.h"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>
#include <utility>

#include "core/error.h"

namespace sfa {

using dist::Frame;
using dist::FrameKind;
using dist::Peer;
using dist::Socket;
using Clock = std::chrono::steady_clock;

namespace {

constexpr int kBeatMs = 500;
// Times timeout_s, where files are read or written and nothing tells how far that is.
constexpr double kFilePatience = 10;
double patience(Phase phase) {
  return phase == Phase::start || phase == Phase::save ? kFilePatience : 1;
}

std::string pack(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& t : texts) {
    const std::uint64_t bytes = t.size();
    all.append(reinterpret_cast<const char*>(&bytes), sizeof bytes);
    all += t;
  }
  return all;
}

std::vector<std::string> unpack(const std::string& all) {
  std::vector<std::string> texts;
  for (std::size_t at = 0; at + sizeof(std::uint64_t) <= all.size();) {
    std::uint64_t bytes = 0;
    std::memcpy(&bytes, all.data() + at, sizeof bytes);
    at += sizeof bytes;
    texts.push_back(all.substr(at, bytes));
    at += bytes;
  }
  return texts;
}

struct Beat {
  std::int64_t step = 0;
  std::uint64_t ticks = 0;
  Phase phase = Phase::start;
};

// What rank 0 knows of a rank.
struct Watched {
  Beat beat;
  Clock::time_point heard = Clock::now(), moved = Clock::now();
  bool gone = false;  // said goodbye, or left when all were closing
};

double since(Clock::time_point then) {
  return std::chrono::duration<double>(Clock::now() - then).count();
}

}  // namespace

std::string_view name_of(Phase phase) {
  constexpr std::array<std::string_view, 8> kNames{"starting",   "waiting for data", "computing", "communicating",
                                                   "validating", "saving",           "waiting",   "ending"};
  return kNames[static_cast<std::size_t>(phase)];
}

struct ControlChannel::Impl {
  int rank = 0, size = 1;
  double timeout_s = 0;
  std::function<void(const std::string&)> line;
  std::vector<Peer> peers;
  std::vector<Socket> sockets;  // rank 0: of ranks 1, 2, ...; others: to rank 0

  std::mutex mutex;
  std::condition_variable changed;
  std::array<std::uint64_t, kLanes> begun{};
  using Key = std::pair<std::uint32_t, std::uint64_t>;
  struct Collected {
    std::vector<std::string> texts;
    int count = 0;
  };
  std::map<Key, Collected> collecting;                   // rank 0
  std::map<Key, std::vector<std::string>> done;          // complete, not taken yet
  std::vector<std::unique_ptr<std::mutex>> send_mutex_;  // a socket is written to by several threads

  std::atomic<std::int64_t> step{0};
  std::atomic<std::uint64_t> ticks{0};
  std::atomic<Phase> phase{Phase::start};
  // Closed: all ranks have come to their channel's end, and nobody is missed any more.
  std::atomic<bool> closed{false}, stop{false}, ending{false};
  std::vector<Watched> watched;  // rank 0's thread alone
  int present = 0;               // rank 0: others that have not left, under the mutex
  std::thread thread;

  std::string name(int r) const {
    const Peer& p = peers[static_cast<std::size_t>(r)];
    return fmt::format("rank {} ({}, process {})", r, p.host, p.pid);
  }

  bool send(std::size_t socket, const Frame& frame) {
    const std::lock_guard<std::mutex> lock(*send_mutex_[socket]);
    return dist::send_frame(sockets[socket], frame);
  }

  [[noreturn]] void end_job(const std::string& text, bool print) {
    if (ending.exchange(true)) std::this_thread::sleep_for(std::chrono::hours(1));  // another thread is at it
    if (print && line) line(text);
    if (rank == 0)
      for (std::size_t s = 0; s < sockets.size(); ++s)
        if (!watched[s + 1].gone) send(s, {FrameKind::fault, 0, 0, text});
    std::fflush(nullptr);
    ::_exit(1);
  }

  // One rank's text has arrived at rank 0.
  void collect(int from, std::uint32_t lane, std::uint64_t sequence, std::string text) {
    std::vector<std::string> complete;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      Collected& c = collecting[{lane, sequence}];
      c.texts.resize(static_cast<std::size_t>(size));
      c.texts[static_cast<std::size_t>(from)] = std::move(text);
      if (++c.count < size) return;
      complete = std::move(c.texts);
      collecting.erase({lane, sequence});
    }
    if (lane == kClose) closed = true;  // before anybody can leave because of it
    const Frame all{FrameKind::all, lane, sequence, pack(complete)};
    for (std::size_t s = 0; s < sockets.size(); ++s) send(s, all);
    deliver(lane, sequence, std::move(complete));
  }

  void deliver(std::uint32_t lane, std::uint64_t sequence, std::vector<std::string> texts) {
    if (lane == kClose) closed = true;
    const std::lock_guard<std::mutex> lock(mutex);
    done[{lane, sequence}] = std::move(texts);
    changed.notify_all();
  }

  [[nodiscard]] Beat own_beat() const { return {step, ticks, phase}; }

  void hear(Watched& w, const Beat& beat) {
    w.heard = Clock::now();
    if (beat.step != w.beat.step || beat.ticks != w.beat.ticks || beat.phase != w.beat.phase ||
        beat.phase == Phase::idle)
      w.moved = w.heard;
    w.beat = beat;
  }

  void leaves(Watched& w) {
    w.gone = true;
    const std::lock_guard<std::mutex> lock(mutex);
    --present;
    changed.notify_all();
  }

  void lost(int r) {
    const Watched& w = watched[static_cast<std::size_t>(r)];
    end_job(fmt::format("{}: the process has died at step {} ({}); the job ends", name(r), w.beat.step,
                        name_of(w.beat.phase)),
            true);
  }

  void on_frame_at_root(int from, Frame& frame) {
    Watched& w = watched[static_cast<std::size_t>(from)];
    if (frame.kind == FrameKind::entry) {
      w.heard = Clock::now();
      collect(from, frame.lane, frame.sequence, std::move(frame.payload));
    } else if (frame.kind == FrameKind::beat && frame.payload.size() == sizeof(Beat)) {
      Beat beat;
      std::memcpy(&beat, frame.payload.data(), sizeof beat);
      hear(w, beat);
    } else if (frame.kind == FrameKind::goodbye) {
      leaves(w);
    } else if (frame.kind == FrameKind::fault) {
      end_job(fmt::format("{}, step {}: {}; the job ends", name(from), w.beat.step, frame.payload), true);
    }
  }

  void look_for_faults() {
    hear(watched[0], own_beat());
    int behind = -1;
    for (int r = 0; r < size; ++r) {
      const Watched& w = watched[static_cast<std::size_t>(r)];
      if (w.gone) continue;
      if (since(w.heard) > timeout_s)
        end_job(fmt::format("{}: no sign of life for {:.0f} s at step {} ({}); the job ends", name(r), since(w.heard),
                            w.beat.step, name_of(w.beat.phase)),
                true);
      // Whoever closes waits for all the others, whatever its step.
      const auto rank_of = [&](int i) {
        const Beat& b = watched[static_cast<std::size_t>(i)].beat;
        const bool closes = b.phase == Phase::close;
        return std::tuple<bool, std::int64_t, bool>(closes, b.step, b.phase == Phase::communicate);
      };
      if (behind < 0 || rank_of(r) < rank_of(behind)) behind = r;
    }
    if (behind < 0) return;
    // The others may wait for it as long as it takes: it is the one that has to get on.
    const Watched& w = watched[static_cast<std::size_t>(behind)];
    if (since(w.moved) <= timeout_s * patience(w.beat.phase)) return;
    end_job(fmt::format("{}: hangs at step {} ({}, for {:.0f} s; dist.timeout_s = {}); the job ends", name(behind),
                        w.beat.step, name_of(w.beat.phase), since(w.moved), timeout_s),
            true);
  }

  void work_at_root() {
    auto looked = Clock::now();
    while (!stop) {
      std::vector<pollfd> waits;
      for (std::size_t s = 0; s < sockets.size(); ++s)
        waits.push_back({watched[s + 1].gone ? -1 : sockets[s].fd(), POLLIN, 0});
      ::poll(waits.data(), waits.size(), kBeatMs / 5);
      for (std::size_t s = 0; s < sockets.size() && !stop; ++s) {
        if ((waits[s].revents & (POLLIN | POLLHUP | POLLERR)) == 0) continue;
        Frame frame;
        const int from = static_cast<int>(s) + 1;
        if (dist::receive_frame(sockets[s], frame))
          on_frame_at_root(from, frame);
        else if (closed)
          leaves(watched[s + 1]);
        else
          lost(from);
      }
      if (since(looked) * 1000 < kBeatMs) continue;
      if (!closed) look_for_faults();
      for (std::size_t s = 0; s < sockets.size(); ++s)
        if (!watched[s + 1].gone) send(s, {FrameKind::beat, 0, 0, {}});
      looked = Clock::now();
    }
  }

  void send_beat() {
    const Beat beat = own_beat();
    send(0, {FrameKind::beat, 0, 0, std::string(reinterpret_cast<const char*>(&beat), sizeof beat)});
  }

  void work_elsewhere() {
    auto beaten = Clock::now() - std::chrono::hours(1), heard = Clock::now();
    while (!stop) {
      pollfd wait{sockets[0].fd(), POLLIN, 0};
      ::poll(&wait, 1, kBeatMs / 5);
      if ((wait.revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
        Frame frame;
        heard = Clock::now();
        if (!dist::receive_frame(sockets[0], frame)) {
          if (closed) return;
          end_job(fmt::format("{} has died, as rank {} finds at step {}; the job ends", name(0), rank, step.load()),
                  true);
        }
        if (frame.kind == FrameKind::all) deliver(frame.lane, frame.sequence, unpack(frame.payload));
        if (frame.kind == FrameKind::fault) end_job(frame.payload, false);
      }
      if (since(heard) > timeout_s && !closed)
        end_job(fmt::format("{}: no sign of life for {:.0f} s, as rank {} finds at step {}; the job ends", name(0),
                            since(heard), rank, step.load()),
                true);
      if (since(beaten) * 1000 < kBeatMs) continue;
      send_beat();
      beaten = Clock::now();
    }
  }

  void start_thread() {
    // Signals belong to the thread that trains.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread = std::thread([this] { rank == 0 ? work_at_root() : work_elsewhere(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
};

ControlChannel::ControlChannel() : impl_(std::make_unique<Impl>()) {
  impl_->peers = {{0, dist::host_name(), ::getpid()}};
}

ControlChannel::ControlChannel(const dist::Meeting& meeting, std::function<void(const std::string&)> line)
    : rank_(meeting.launch.rank), size_(meeting.launch.size), impl_(std::make_unique<Impl>()) {
  impl_->rank = rank_;
  impl_->size = size_;
  impl_->timeout_s = meeting.timeout_s;
  impl_->line = std::move(line);
  impl_->sockets = dist::meet(meeting, impl_->peers);
  for (std::size_t s = 0; s < impl_->sockets.size(); ++s) impl_->send_mutex_.push_back(std::make_unique<std::mutex>());
  impl_->watched.resize(static_cast<std::size_t>(size_));
  impl_->present = size_ - 1;
  impl_->start_thread();
  // Everybody learns everybody's name.
  const Peer& me = impl_->peers[static_cast<std::size_t>(rank_)];
  const std::vector<std::string> names = gather(kMain, fmt::format("{} {}", me.pid, me.host));
  for (int r = 0; r < size_; ++r) {
    const std::string& text = names[static_cast<std::size_t>(r)];
    impl_->peers[static_cast<std::size_t>(r)] = {r, text.substr(text.find(' ') + 1), std::atoi(text.c_str())};
  }
}

// All ranks reach this, or the process ends by an exception, which give_up() has turned into the end of the job. Until
// the last has come, whoever dies or does not get on is found as before.
ControlChannel::~ControlChannel() {
  if (impl_->thread.joinable()) {
    impl_->phase = Phase::close;
    try {
      barrier(kClose);
    } catch (const std::exception&) {
      // Ending anyway.
    }
    if (rank_ == 0) {
      // A connection that is closed with something unread in it may take along what was sent last: others leave first.
      std::unique_lock<std::mutex> lock(impl_->mutex);
      impl_->changed.wait_for(lock, std::chrono::duration<double>(impl_->timeout_s),
                              [this] { return impl_->present == 0; });
    } else {
      impl_->send(0, {FrameKind::goodbye, 0, 0, {}});
    }
    impl_->stop = true;
    impl_->thread.join();
  }
}

std::string ControlChannel::name_of_rank(int rank) const {
  return impl_->name(rank);
}

void ControlChannel::begin_gather(Lane lane, const std::string& mine) {
  std::uint64_t sequence = 0;
  {
    const std::lock_guard<std::mutex> lock(impl_->mutex);
    sequence = ++impl_->begun[lane];
    if (size_ == 1) {
      impl_->done[{lane, sequence}] = {mine};
      return;
    }
  }
  if (rank_ == 0)
    impl_->collect(0, lane, sequence, mine);
  else if (!impl_->send(0, {FrameKind::entry, lane, sequence, mine}))
    ::pause();  // rank 0 is gone: the listening thread says so and ends the process
}

std::vector<std::string> ControlChannel::end_gather(Lane lane) {
  // Whoever waits here waits for others, unless more patience was asked for; background threads have no phase.
  const Phase before = impl_->phase;
  const bool waits =
      lane != kCheckpoint && (before == Phase::data || before == Phase::compute || before == Phase::validate);
  if (waits) impl_->phase = Phase::communicate;
  std::unique_lock<std::mutex> lock(impl_->mutex);
  const Impl::Key key{lane, impl_->begun[lane]};
  impl_->changed.wait(lock, [&] { return impl_->done.contains(key); });
  std::vector<std::string> texts = std::move(impl_->done[key]);
  impl_->done.erase(key);
  if (waits) impl_->phase = before;
  return texts;
}

std::vector<std::string> ControlChannel::gather(Lane lane, const std::string& mine) {
  begin_gather(lane, mine);
  return end_gather(lane);
}

void ControlChannel::agree(const std::function<void()>& work) {
  std::string mine;
  if (size_ == 1) return work();
  try {
    work();
  } catch (const std::exception& e) {
    mine = *e.what() == '\0' ? "failed" : e.what();
  }
  const std::vector<std::string> all = gather(kMain, mine);
  for (int r = 0; r < size_; ++r) {
    const std::string& text = all[static_cast<std::size_t>(r)];
    if (text.empty()) continue;
    throw AgreedError(rank_ != 0 ? "" : r == 0 ? text : name_of_rank(r) + ": " + text);
  }
}

void ControlChannel::at(std::int64_t step, Phase phase) {
  impl_->step = step;
  impl_->phase = phase;
}

Phase ControlChannel::in(Phase phase) {
  return impl_->phase.exchange(phase);
}

void ControlChannel::tick() {
  ++impl_->ticks;
}

void ControlChannel::give_up(const std::string& why) {
  if (rank_ != 0) {
    impl_->send_beat();  // with the step
    impl_->send(0, {FrameKind::fault, 0, 0, why});
    std::this_thread::sleep_for(std::chrono::seconds(5));  // rank 0's answer ends this process
    impl_->end_job(fmt::format("{}, step {}: {}; the job ends", impl_->name(rank_), impl_->step.load(), why), true);
  }
  impl_->end_job(fmt::format("{}, step {}: {}; the job ends", impl_->name(0), impl_->step.load(), why), true);
}

void ControlChannel::or_give_up(const std::function<void()>& work) {
  try {
    work();
  } catch (const AgreedError&) {
    throw;
  } catch (const std::exception& e) {
    if (size_ > 1) give_up(e.what());
    throw;
  }
}

}  // namespace sfa
