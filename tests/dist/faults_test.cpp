// A rank that dies, hangs, throws or is told to stop: the job ends, says why, and goes on bit for bit.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include "dist/ranks_test.h"
#include "dist/seconds.h"

namespace sfa::test {
namespace {

using Clock = std::chrono::steady_clock;

class Faults : public RanksTest {
 protected:
  /// The processes that mpirun has started, by number.
  static std::vector<pid_t> ranks_of(pid_t launcher) {
    std::vector<pid_t> found;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator("/proc", error)) {
      const std::string stat = read_text(entry.path() / "stat");
      const std::size_t name_end = stat.rfind(')');
      if (name_end == std::string::npos) continue;
      std::istringstream rest(stat.substr(name_end + 1));
      std::string state;
      pid_t parent = 0;
      rest >> state >> parent;
      if (parent == launcher) found.push_back(static_cast<pid_t>(std::atoi(stat.c_str())));
    }
    std::sort(found.begin(), found.end());
    return found;
  }
};

TEST_F(Faults, ALineNamesRankStepAndCause) {
  struct Case {
    const char *fault, *says;
  };
  for (const Case& c : {Case{"throw:1:6", "step 6: a fault that was asked for"}, Case{"hang:1:6", "hangs at step 6"},
                        Case{"hang:0:6", "hangs at step 6"}, Case{"throw:0:6", "step 6: a fault that was asked for"}}) {
    fs::remove_all(at("run"));
    const auto begin = Clock::now();
    const Ended ended = program_on_ranks(2, {"train", c.fault, at("run.yaml"), "dist.timeout_s=8"});
    EXPECT_LT(seconds_since(begin), 60) << c.fault;
    EXPECT_NE(ended.code, 0) << c.fault;
    EXPECT_NE(ended.err.find(std::string("rank ") + c.fault[std::strlen(c.fault) - 3] + " ("), std::string::npos)
        << ended.err;
    EXPECT_NE(ended.err.find(c.says), std::string::npos) << c.fault << ": " << ended.err;
    for (const fs::path& checkpoint : list_checkpoints(at("run"))) CheckpointReader(checkpoint).verify();
  }
}

// A micro-step that takes longer than dist.timeout_s, in forward and in backward, while its blocks get on.
TEST_F(Faults, ASlowRankIsNoHangingOne) {
  for (const char* fault : {"slow:0:1", "slow:1:1"}) {
    fs::remove_all(at("run"));
    const auto begin = Clock::now();
    const Ended ended = program_on_ranks(
        2, {"train", fault, at("run.yaml"), "dist.timeout_s=4", "train.max_steps=2", "model.num_hidden_layers=5"});
    EXPECT_EQ(ended.code, 0) << fault << ": " << ended.err;
    EXPECT_GT(seconds_since(begin), 5 * 1.2 * 2) << "nothing was slow";
  }
}

TEST_F(Faults, ADeadRankEndsTheJob) {
  for (const char* fault : {"die:0:6", "die:1:6"}) {
    fs::remove_all(at("run"));
    const auto begin = Clock::now();
    const Ended ended = program_on_ranks(2, {"train", fault, at("run.yaml")});
    EXPECT_LT(seconds_since(begin), 60);
    EXPECT_NE(ended.code, 0);
    // mpirun may be faster than the other rank.
    EXPECT_TRUE(ended.err.find("has died") != std::string::npos || ended.err.find("signal 9") != std::string::npos)
        << ended.err;
  }
}

/// Ranks that share the batch, and ranks that share every sequence.
class FaultsOfLayouts : public Faults, public ::testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(Layouts, FaultsOfLayouts, ::testing::Values("dist.zero=1", "dist.context_parallel=2"),
                         [](const auto& layout) { return layout.index == 0 ? "zero" : "context"; });

TEST_P(FaultsOfLayouts, StoppedOnAnyRankAllSaveAndGoOnBitForBit) {
  const bool zero = std::string(GetParam()) == "dist.zero=1";  // the other layout takes more messages a step
  const std::vector<std::string> arguments{"train",
                                           at("run.yaml"),
                                           "checkpoint.every=0",
                                           zero ? "train.max_steps=400" : "train.max_steps=120",
                                           "train.eval_every=0",
                                           GetParam()};
  const auto with = [&](const std::string& more) {
    std::vector<std::string> all = arguments;
    all.push_back(more);
    return all;
  };
  ASSERT_EQ(on_ranks(2, with("output_dir=" + at("undisturbed"))).code, 0);
  for (const std::size_t rank : {0, 1}) {
    fs::remove_all(at("run"));
    Program program(arguments, scratch(), "/dev/null", mpirun(2));
    while (program.running() && read_text(at("run") + "/metrics.jsonl").empty())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const std::vector<pid_t> ranks = ranks_of(program.pid());
    ASSERT_EQ(ranks.size(), 2u);
    ::kill(ranks[rank], SIGTERM);
    const Ended ended = program.wait();
    EXPECT_EQ(ended.code, 0) << ended.err;
    EXPECT_NE(ended.err.find("stopped by signal 15"), std::string::npos) << ended.err;
    ASSERT_EQ(list_checkpoints(at("run")).size(), 1u);
    ASSERT_EQ(on_ranks(2, with("resume=auto")).code, 0);
    EXPECT_EQ(tensors(at("run")), tensors(at("undisturbed")));
  }
}

TEST_P(FaultsOfLayouts, RanksKilledAtAnyMomentEndBitForBit) {
  const int most = std::string(GetParam()) == "dist.zero=1" ? 20 : 5;
  const auto begin = Clock::now();
  ASSERT_EQ(on_ranks(2, {"train", at("run.yaml"), "output_dir=" + at("undisturbed"), GetParam()}).code, 0);
  double whole = seconds_since(begin);
  const auto expected = tensors(at("undisturbed"));
  std::mt19937 random(20);
  int kills = 0;
  for (int started = 0; kills < most; ++started) {
    ASSERT_LT(started, 200) << "a run that is killed again and again does not get on";
    Program program({"train", at("run.yaml"), "resume=auto", GetParam()}, scratch(), "/dev/null", mpirun(2));
    const double moment = whole * std::uniform_real_distribution<>(0.2, 1.0)(random);
    const auto since = Clock::now();
    while (seconds_since(since) < moment && program.running())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const std::vector<pid_t> ranks = program.running() ? ranks_of(program.pid()) : std::vector<pid_t>{};
    if (!ranks.empty()) ::kill(ranks[random() % ranks.size()], SIGKILL);
    const auto killed = Clock::now();
    const Ended ended = program.wait();
    EXPECT_LT(seconds_since(killed), 60);
    if (ended.code != 0) {
      ++kills;
      for (const fs::path& checkpoint : list_checkpoints(at("run"))) CheckpointReader(checkpoint).verify();
      continue;
    }
    ASSERT_EQ(tensors(at("run")), expected) << "after " << kills << " kills";
    fs::remove_all(at("run"));
    whole = std::min(whole, seconds_since(since));  // the machine may have had other work at first
  }
  const Ended last = on_ranks(2, {"train", at("run.yaml"), "resume=auto", GetParam()});
  ASSERT_EQ(last.code, 0) << last.err;
  EXPECT_EQ(tensors(at("run")), expected);
}

}  // namespace
}  // namespace sfa::test
