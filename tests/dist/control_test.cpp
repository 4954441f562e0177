// The control channel among threads of one process, each a rank.
#include "dist/control.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>

#include "app/program.h"
#include "checkpoint/helpers.h"
#include "dist/communicator.h"
#include "dist/seconds.h"

namespace sfa::test {
namespace {

// Runs `work` as every rank of `size`, which meet at a file.
void as_ranks(int size, const std::function<void(ControlChannel&)>& work) {
  const std::string file =
      (std::filesystem::temp_directory_path() / ("sfa_meet_" + std::to_string(::getpid()))).string();
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back([=] {
      Launch launch;
      launch.rank = r;
      launch.size = size;
      launch.launcher = "a test";
      launch.file = file;
      ControlChannel control({launch, 20, {}}, {});
      work(control);
    });
  for (std::thread& t : threads) t.join();
  EXPECT_FALSE(std::filesystem::exists(file)) << "the meeting place is left behind";
}

TEST(Control, TextsOfAllRanksInOrder) {
  as_ranks(4, [](ControlChannel& control) {
    for (int round = 0; round < 50; ++round) {
      // Lanes do not wait for each other.
      control.begin_gather(ControlChannel::kVote, std::string(static_cast<std::size_t>(round), 'v'));
      const std::string mine = std::to_string(control.rank()) + ":" + std::to_string(round);
      const auto all = control.gather(ControlChannel::kMain, mine);
      ASSERT_EQ(all.size(), 4u);
      for (int r = 0; r < 4; ++r)
        EXPECT_EQ(all[static_cast<std::size_t>(r)], std::to_string(r) + ":" + std::to_string(round));
      for (const std::string& text : control.end_gather(ControlChannel::kVote))
        EXPECT_EQ(text.size(), static_cast<std::size_t>(round));
    }
    EXPECT_EQ(control.broadcast(ControlChannel::kMain, "from " + std::to_string(control.rank())), "from 0");
    EXPECT_EQ(control.broadcast(ControlChannel::kMain, std::string(3'000'000, 'x')).size(), 3'000'000u);
  });
}

TEST(Control, AFailureOfOneIsThrownByAll) {
  as_ranks(3, [](ControlChannel& control) {
    int thrown = 0;
    try {
      control.agree([&] { require(control.rank() != 1, "the disk is full"); });
    } catch (const AgreedError& e) {
      ++thrown;
      const std::string text = e.what();
      if (control.rank() == 0) {
        EXPECT_NE(text.find("rank 1 ("), std::string::npos) << text;
        EXPECT_NE(text.find("the disk is full"), std::string::npos) << text;
      } else {
        EXPECT_EQ(text, "");
      }
    }
    EXPECT_EQ(thrown, 1);
    control.agree([] {});
  });
}

// Ranks that are processes: threads can't die by themselves. What a rank prints goes to a file.
class Processes {
 public:
  Processes() : folder_(fs::temp_directory_path() / ("sfa_processes_" + std::to_string(::getpid()))) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~Processes() { fs::remove_all(folder_); }
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;

  /// Exit codes of `size` ranks that do `work`; -9 of one that was killed.
  std::vector<int> run(int size, double timeout_s, const std::function<void(ControlChannel&)>& work) const {
    std::vector<pid_t> processes;
    for (int r = 0; r < size; ++r) {
      fs::remove(printed_file(r));
      const pid_t process = ::fork();
      if (process == 0) be(r, size, timeout_s, work);
      processes.push_back(process);
    }
    // Whoever is still there after this is stuck.
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    std::vector<int> codes;
    for (const pid_t process : processes) {
      int status = 0;
      while (::waitpid(process, &status, WNOHANG) == 0) {
        if (std::chrono::steady_clock::now() > limit) {
          ADD_FAILURE() << "process " << process << " is stuck";
          ::kill(process, SIGKILL);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
      codes.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    }
    return codes;
  }
  [[nodiscard]] std::string printed(int rank) const { return read_text(printed_file(rank)); }

 private:
  [[nodiscard]] fs::path printed_file(int rank) const { return folder_ / std::to_string(rank); }
  [[noreturn]] void be(int rank, int size, double timeout_s, const std::function<void(ControlChannel&)>& work) const {
    Launch launch;
    launch.rank = rank;
    launch.size = size;
    launch.launcher = "a test";
    launch.file = (folder_ / "meet").string();
    try {
      ControlChannel control({launch, timeout_s, {}},
                             [&](const std::string& line) { std::ofstream(printed_file(rank)) << line; });
      work(control);
    } catch (const std::exception&) {
      ::_exit(3);
    }
    ::_exit(0);
  }

  fs::path folder_;
};

void expect_said(const std::string& line, int rank, const std::string& cause) {
  EXPECT_NE(line.find("rank " + std::to_string(rank) + " ("), std::string::npos) << line;
  EXPECT_NE(line.find(cause), std::string::npos) << line;
}

TEST(Control, ADeathIsFoundWhileOthersClose) {
  const Processes processes;
  for (const int dies : {0, 1, 2}) {
    const std::vector<int> codes = processes.run(3, 20, [dies](ControlChannel& control) {
      control.at(7, Phase::compute);
      control.barrier(ControlChannel::kMain);
      if (control.rank() != dies) return;
      std::this_thread::sleep_for(std::chrono::seconds(2));  // the others are closing by now
      ::kill(::getpid(), SIGKILL);
    });
    for (int r = 0; r < 3; ++r) EXPECT_EQ(codes[static_cast<std::size_t>(r)], r == dies ? -SIGKILL : 1) << r;
    expect_said(processes.printed(dies == 0 ? 1 : 0), dies, "has died");
  }
}

TEST(Control, WhoeverKeepsOthersFromClosingIsFound) {
  const Processes processes;
  for (const int hangs : {0, 1}) {
    const std::vector<int> codes = processes.run(3, 3, [hangs](ControlChannel& control) {
      // Further on than those that wait for it.
      control.at(control.rank() == hangs ? 8 : 7, Phase::compute);
      control.barrier(ControlChannel::kMain);
      if (control.rank() == hangs) std::this_thread::sleep_for(std::chrono::hours(1));
    });
    EXPECT_EQ(codes, (std::vector<int>{1, 1, 1}));
    expect_said(processes.printed(0), hangs, "hangs at step 8 (computing");
  }
}

TEST(Control, WhoFailsWhereOthersWaitSaysSo) {
  const Processes processes;
  for (const int fails : {0, 1}) {
    const std::vector<int> codes = processes.run(2, 20, [fails](ControlChannel& control) {
      control.or_give_up([&] {
        require(control.rank() != fails, "no stream can be had");
        std::this_thread::sleep_for(std::chrono::hours(1));  // in a library that waits for all ranks
      });
    });
    EXPECT_EQ(codes, (std::vector<int>{1, 1}));
    expect_said(processes.printed(0), fails, "no stream can be had; the job ends");
  }
  // What all ranks throw together is no rank's failure.
  const std::vector<int> codes = processes.run(
      2, 20, [](ControlChannel& control) { control.or_give_up([&] { control.agree([] { fail("no library"); }); }); });
  EXPECT_EQ(codes, (std::vector<int>{3, 3}));
}

// A TCP socket of this machine: listening at a port of its own, or connected to one.
class TestSocket {
 public:
  TestSocket() : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {}
  ~TestSocket() { close(); }
  TestSocket(TestSocket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  TestSocket(const TestSocket&) = delete;
  TestSocket& operator=(const TestSocket&) = delete;
  /// The port.
  int listen() const {
    sockaddr_in a = address(0);
    socklen_t length = sizeof a;
    if (::bind(fd_, reinterpret_cast<sockaddr*>(&a), length) != 0 || ::listen(fd_, 16) != 0) return 0;
    return ::getsockname(fd_, reinterpret_cast<sockaddr*>(&a), &length) == 0 ? ntohs(a.sin_port) : 0;
  }
  /// Tries until somebody listens there.
  void connect(int port) const {
    const sockaddr_in a = address(port);
    while (::connect(fd_, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  void say(const std::string& text) const { EXPECT_EQ(::send(fd_, text.data(), text.size(), 0), std::ssize(text)); }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

 private:
  static sockaddr_in address(int port) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    a.sin_port = htons(static_cast<std::uint16_t>(port));
    return a;
  }
  int fd_;
};

Launch launch_at(int port, int rank, int size) {
  Launch launch;
  launch.rank = rank;
  launch.size = size;
  launch.launcher = "a test";
  launch.address = "127.0.0.1";
  launch.port = port;
  return launch;
}

// One stranger says less than a hello; several keep rank 0 for longer than a rank waits for its answer.
TEST(Rendezvous, StrangersDoNotKeepRanksFromMeeting) {
  for (const int many : {1, 3}) {
    const int port = TestSocket().listen();
    ASSERT_GT(port, 0);
    const auto begin = std::chrono::steady_clock::now();
    std::thread first([=] {
      const Launch launch = launch_at(port, 0, 2);
      ControlChannel control({launch, 20, {}}, {});
      EXPECT_EQ(control.broadcast(ControlChannel::kMain, "from 0"), "from 0");
    });
    std::vector<TestSocket> strangers(static_cast<std::size_t>(many));
    for (const TestSocket& s : strangers) {
      s.connect(port);
      s.say("GET");
    }
    std::thread second([=] {
      const Launch launch = launch_at(port, 1, 2);
      ControlChannel control({launch, 20, {}}, {});
      EXPECT_EQ(control.broadcast(ControlChannel::kMain, ""), "from 0");
    });
    // Strangers that are waited for leave at last, so that the test ends.
    std::atomic<bool> met{false};
    std::thread leave([&] {
      while (!met && seconds_since(begin) < 18) std::this_thread::sleep_for(std::chrono::milliseconds(50));
      for (TestSocket& s : strangers) s.close();
    });
    first.join();
    second.join();
    EXPECT_LT(seconds_since(begin), 15) << many;
    met = true;
    leave.join();
  }
}

TEST(Rendezvous, ASilentServiceIsNotWaitedForLongerThanTheTimeout) {
  TestSocket silent;
  const int port = silent.listen();
  ASSERT_GT(port, 0);
  const auto begin = std::chrono::steady_clock::now();
  std::atomic<bool> given_up{false};
  std::thread leave([&] {
    while (!given_up && seconds_since(begin) < 12) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    silent.close();
  });
  const Launch launch = launch_at(port, 1, 2);
  EXPECT_ERROR(ControlChannel({launch, 2, {}}, {}), "rank 1 on");
  EXPECT_LT(seconds_since(begin), 8);
  given_up = true;
  leave.join();
}

TEST(Control, RangesCoverWhatIsSplit) {
  for (const std::int64_t n : {0, 1, 63, 64, 65, 1000, 4096})
    for (const int parts : {1, 2, 3, 8}) {
      std::int64_t at = 0;
      for (const FlatRange& r : split_evenly(n, parts, 64)) {
        EXPECT_EQ(r.begin, at);
        EXPECT_TRUE(r.begin % 64 == 0 || r.begin == n);
        at = r.end();
      }
      EXPECT_EQ(at, n);
    }
}

}  // namespace
}  // namespace sfa::test
