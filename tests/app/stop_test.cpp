// A run that is killed or stopped at any moment and resumed ends bit for bit like one that was left alone.
#include <chrono>
#include <random>
#include <thread>

#include "app/program.h"

namespace sfa::test {
namespace {

using Clock = std::chrono::steady_clock;
using AppStop = AppTest;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

TEST_F(AppStop, KilledAtTwentyMomentsEndsBitForBit) {
  const auto begin = Clock::now();
  const Ended undisturbed = sfa({"train", at("run.yaml"), "output_dir=" + at("undisturbed")});
  ASSERT_EQ(undisturbed.code, 0) << undisturbed.err;
  const double whole = seconds_since(begin);
  const auto expected = tensors(at("undisturbed"));
  ASSERT_GT(expected.size(), 20u);

  std::mt19937 random(20);
  int kills = 0, finished = 0;
  for (int started = 0; kills < 20; ++started) {
    ASSERT_LT(started, 400) << "a run that is killed again and again does not get on";
    Program program({"train", at("run.yaml"), "--resume"}, scratch());
    const double moment = whole * std::uniform_real_distribution<>(0.0, 0.7)(random);
    const auto since = Clock::now();
    while (seconds_since(since) < moment && program.running())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (program.running()) program.send(SIGKILL);
    const Ended ended = program.wait();
    if (ended.signal == SIGKILL) {
      ++kills;
      // What is there is whole, whatever was being written.
      for (const fs::path& checkpoint : list_checkpoints(at("run"))) CheckpointReader(checkpoint).verify();
      continue;
    }
    ASSERT_EQ(ended.code, 0) << ended.err;
    ASSERT_EQ(tensors(at("run")), expected) << "after " << kills << " kills";
    ++finished;
    fs::remove_all(at("run"));
  }
  const Ended last = sfa({"train", at("run.yaml"), "--resume"});
  ASSERT_EQ(last.code, 0) << last.err;
  EXPECT_EQ(tensors(at("run")), expected);
  // Metrics hold every step once, however often it was taken.
  std::map<std::string, int> lines;
  std::ifstream metrics(at("run") + "/metrics.jsonl");
  for (std::string line; std::getline(metrics, line);) ++lines[line.substr(0, line.find(','))];
  EXPECT_EQ(lines.size(), 8u);
  for (const auto& [step, count] : lines) EXPECT_LE(count, 2) << step;  // training and validation
}

TEST_F(AppStop, TerminatedSavesAndGoesOnBitForBit) {
  ASSERT_EQ(sfa({"train", at("run.yaml"), "output_dir=" + at("undisturbed")}).code, 0);
  for (const int signal : {SIGTERM, SIGINT}) {
    Ended ended;
    // Without periodic checkpoints only the signal makes one.
    for (int attempt = 0; attempt < 20; ++attempt) {
      fs::remove_all(at("run"));
      Program program({"train", at("run.yaml"), "checkpoint.every=0", "train.log_every=1"}, scratch());
      while (program.running() && read_text(at("run") + "/metrics.jsonl").empty())
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      program.send(signal);
      ended = program.wait();
      ASSERT_EQ(ended.code, 0) << ended.err;
      if (ended.err.find("stopped by signal") != std::string::npos) break;
    }
    ASSERT_NE(ended.err.find("stopped by signal " + std::to_string(signal)), std::string::npos) << ended.err;
    ASSERT_EQ(list_checkpoints(at("run")).size(), 1u);
    const Ended resumed = sfa({"train", at("run.yaml"), "checkpoint.every=0", "train.log_every=1", "--resume"});
    ASSERT_EQ(resumed.code, 0) << resumed.err;
    EXPECT_NE(resumed.err.find("resuming"), std::string::npos) << resumed.err;
    EXPECT_EQ(tensors(at("run")), tensors(at("undisturbed")));
  }
}

TEST_F(AppStop, AFinishedRunIsLeftAsItIs) {
  ASSERT_EQ(sfa({"train", at("run.yaml")}).code, 0);
  const auto before = tensors(at("run"));
  const std::string metrics = read_text(at("run") + "/metrics.jsonl");
  const Ended again = sfa({"train", at("run.yaml"), "--resume"});
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_NE(again.err.find("complete"), std::string::npos) << again.err;
  EXPECT_EQ(tensors(at("run")), before);
  EXPECT_EQ(read_text(at("run") + "/metrics.jsonl"), metrics);
}

}  // namespace
}  // namespace sfa::test
