// The scripts that repeat the paper's tables, and those that launch and check: what they refuse, what they leave as it
// is and how they end.
#include <chrono>
#include <thread>

#include "app/program.h"
#include "golden/golden_file.h"

namespace sfa::test {
namespace {

class AppScripts : public AppTest {
 protected:
  void SetUp() override {
    AppTest::SetUp();
    if (HasFatalFailure()) return;
    const char* named = std::getenv("SFA_BINARY");
    ::setenv("SFA", named ? named : SFA_BINARY, 1);
  }
  void TearDown() override {
    ::unsetenv("SFA");
    AppTest::TearDown();
  }

  // bash scripts/NAME ARGUMENT...
  static std::vector<std::string> command(const std::string& name, const std::vector<std::string>& arguments) {
    std::vector<std::string> all{source_dir() + "/scripts/" + name};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return all;
  }
  Ended script(const std::string& name, const std::vector<std::string>& arguments) const {
    return Program(command(name, arguments), scratch(), "/dev/null", {}, "bash").wait();
  }
  // The script ends with `code`, says one line that holds every word of `words`, and changes nothing.
  void refused(const std::string& name, const std::vector<std::string>& arguments, int code,
               const std::vector<std::string>& words) const {
    const auto before = snapshot();
    const Ended ended = script(name, arguments);
    std::string shown = name;
    for (const std::string& a : arguments) shown += " " + a;
    SCOPED_TRACE(shown + "\n" + ended.err);
    EXPECT_EQ(ended.code, code) << "signal " << ended.signal;
    EXPECT_EQ(std::count(ended.err.begin(), ended.err.end(), '\n'), 1);
    EXPECT_EQ(ended.out, "");
    for (const std::string& word : words) EXPECT_NE(ended.err.find(word), std::string::npos) << word;
    EXPECT_EQ(snapshot(), before);
  }
  // Options of pretraining.sh for runs of a model that a test has time for, and more of them.
  [[nodiscard]] std::vector<std::string> tiny(const std::vector<std::string>& more) const {
    std::vector<std::string> all{"--data",
                                 at("data.h5"),
                                 "--out",
                                 at("sweep"),
                                 "--seeds",
                                 "1",
                                 "device=cpu",
                                 "model.num_hidden_layers=1",
                                 "model.num_attention_heads=1",
                                 "model.hidden_size=64",
                                 "data.seq_len=32",
                                 "data.batch_size=2",
                                 "data.micro_batch_size=2"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

TEST_F(AppScripts, AWrongCommandLineEndsWithTwo) {
  const std::string pretraining = "reproduce/pretraining.sh", niah = "reproduce/niah.sh";
  const std::string latency = "reproduce/latency.sh", forever = "launch/run_forever.sh";
  refused(pretraining, {}, 2, {"--data"});
  for (const char* wrong : {"abc", "30M", "0", "-1"})
    refused(pretraining, tiny({"--tokens", wrong}), 2, {"--tokens", wrong});
  for (const char* wrong : {"0", "abc", "5x", ".5", "1e3", "99999999h"})
    refused(pretraining, tiny({"--budget", wrong}), 2, {"--budget", wrong});
  refused(pretraining, tiny({"--gpus", "two"}), 2, {"--gpus", "two"});
  refused(pretraining, tiny({"--seeds", "1 x"}), 2, {"--seeds", "'x'"});
  refused(pretraining, tiny({"--rates", "1e-3 fast"}), 2, {"--rates", "fast"});
  refused(pretraining, tiny({"--variants", "dense sfa8_gte"}), 2, {"--variants", "gte"});
  refused(pretraining, tiny({"--val"}), 2, {"--val needs a value"});
  refused(pretraining, tiny({"--val", "--tasks"}), 2, {"--val needs a value"});
  refused(pretraining, tiny({"--bogus"}), 2, {"--bogus"});
  refused(niah, {"--out", at("niah"), "--seq-len", "abc"}, 2, {"--seq-len", "abc"});
  refused(niah, {"--out", at("niah"), "--steps", "abc"}, 2, {"--steps", "abc"});
  refused(niah, {"--out", at("niah"), "--samples", "x"}, 2, {"--samples", "'x'"});
  refused(niah, {"--out", at("niah"), "--variants", "dense sfa8_2of4"}, 2, {"--variants", "sfa8_2of4"});
  refused(latency, {"--out", at("latency"), "--k", "8,x"}, 2, {"--k", "8,x"});
  refused(latency, {"--out", at("latency"), "--lengths", "64.."}, 2, {"--lengths", "64.."});
  refused("reproduce/flops.sh", {"--bogus"}, 2, {"--bogus"});
  refused("gpu_check.sh", {"--data"}, 2, {"--data needs a value"});
  refused("gpu_check_multi.sh", {"--data"}, 2, {"--data needs a value"});
  refused("gpu_check_multi.sh", {"--gpus", "two"}, 2, {"--gpus", "two"});
  refused(forever, {}, 2, {"command"});
  refused(forever, {"--times", "x", "true"}, 2, {"--times", "'x'"});
  refused(forever, {"--wait"}, 2, {"--wait needs a value"});
  refused(forever, {"--tmies", "3", "true"}, 2, {"--tmies"});
}

TEST_F(AppScripts, WhatIsMissingIsFoundBeforeTheFirstRun) {
  const std::string pretraining = "reproduce/pretraining.sh";
  ASSERT_EQ(sfa({"data", "tokenize", "--output", at("all.h5"), at("text.txt")}).code, 0);
  refused(pretraining, tiny({"--data", at("none*.h5")}), 1, {"--data", "none*.h5"});
  refused(pretraining, tiny({"--data", at("text.txt")}), 1, {"--data", "text.txt", "HDF5"});
  refused(pretraining, tiny({"--data", at("all.h5")}), 1, {"--data", "validation", "--val"});
  refused(pretraining, tiny({"--val", at("none.h5")}), 1, {"--val", "none.h5"});
  refused(pretraining, tiny({"--variants", "dense", "--out", at("text.txt") + "/sweep"}), 1, {"--out", "text.txt"});
  refused(pretraining, tiny({"--variants", "dense sfa99"}), 1, {"sfa99_s1", "model.attention.k"});
  refused(pretraining, tiny({"--variants", "dense", "trian.lr=1"}), 1, {"trian.lr", "train.lr"});
  refused("gpu_check_multi.sh", {"--data", at("none.h5")}, 1, {"--data", "none.h5"});
}

TEST_F(AppScripts, AFolderOfOtherSettingsIsRefused) {
  const std::string pretraining = "reproduce/pretraining.sh";
  const std::vector<std::string> dense{"--tokens", "131072", "--variants", "dense"};
  const auto more = [&](std::vector<std::string> last) {
    last.insert(last.begin(), dense.begin(), dense.end());
    return tiny(last);
  };
  Ended ended = script(pretraining, tiny(dense));
  ASSERT_EQ(ended.code, 0) << ended.err;
  refused(pretraining, more({"--lr", "1e-4"}), 1, {"dense_s1", "train.lr 7.5e-4 (now 1e-4)", "--out"});
  refused(pretraining, more({"--tokens", "262144"}), 1, {"dense_s1", "train.max_steps 2 (now 4)"});
  refused(pretraining, more({"--val", at("data.h5")}), 1, {"dense_s1", "data.val"});
  refused(pretraining, more({"train.weight_decay=0.3"}), 1, {"dense_s1", "train.weight_decay"});
  // Another spelling of the folder, what changes no weight, and further variants.
  ended = script(pretraining, more({"--out", at("sweep/../sweep"), "--variants", "dense sfa8", "train.log_every=2"}));
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_NE(ended.out.find("dense_s1: finished already"), std::string::npos) << ended.out;
  EXPECT_NE(ended.out.find("2 of 2 finished"), std::string::npos) << ended.out;
}

TEST_F(AppScripts, RunsThatFailMakeTheSweepFail) {
  const Ended ended = script("reproduce/pretraining.sh", tiny({"--variants", "dense", "model.vocab_size=10"}));
  EXPECT_EQ(ended.code, 1);
  EXPECT_NE(ended.err.find("model.vocab_size"), std::string::npos) << ended.err;
  EXPECT_EQ(ended.err.find("train.log"), std::string::npos) << "there is none: " << ended.err;
}

TEST_F(AppScripts, ASignalSavesTheRunAndEndsTheSweep) {
  const auto arguments = tiny({"--tokens", "6e8", "--variants", "dense sfa8", "train.log_every=1", "--budget", "2min"});
  Program sweep(command("reproduce/pretraining.sh", arguments), scratch(), "/dev/null", {}, "bash");
  for (int i = 0; i < 6000 && sweep.running() && read_text(at("sweep/dense_s1/metrics.jsonl")).empty(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  sweep.send(SIGTERM);
  const Ended ended = sweep.wait();
  EXPECT_EQ(ended.code, 143) << ended.err;
  EXPECT_EQ(list_checkpoints(at("sweep/dense_s1")).size(), 1u);
  EXPECT_NE(ended.out.find("left: dense_s1, "), std::string::npos) << ended.out;
  EXPECT_NE(ended.out.find("left: sfa8_s1, not begun"), std::string::npos) << ended.out;
}

TEST_F(AppScripts, RunForeverGivesUpAtOnceWhereNothingStarts) {
  for (const auto& [program, code] : {std::pair{at("none"), 127}, std::pair{at("text.txt"), 126}}) {
    const Ended ended = script("launch/run_forever.sh", {"--wait", "0", program});
    EXPECT_EQ(ended.code, code) << ended.err;
    EXPECT_EQ(ended.err.find("again"), std::string::npos) << ended.err;
  }
  const Ended twice = script("launch/run_forever.sh", {"--times", "2", "--wait", "0", "false"});
  EXPECT_EQ(twice.code, 1) << twice.err;
  EXPECT_NE(twice.err.find("failed 2 times"), std::string::npos) << twice.err;
}

}  // namespace
}  // namespace sfa::test
