// Training on several ranks over MPI: the same run on any number of them.
#include "dist/ranks_test.h"

namespace sfa::test {
namespace {

using Ranks = RanksTest;

TEST_F(Ranks, EveryOperationOfTheCommunicator) {
  for (const int ranks : {2, 3}) {
    const Ended ended = program_on_ranks(ranks, {"collectives", "cpu"});
    EXPECT_EQ(ended.code, 0) << ended.err;
    EXPECT_NE(ended.out.find("all operations are right"), std::string::npos) << ended.out;
  }
}

TEST_F(Ranks, LossesAreThoseOfOneRankAndRunsRepeatThemselves) {
  ASSERT_EQ(sfa({"train", at("run.yaml"), "output_dir=" + at("one")}).code, 0);
  const std::vector<double> one = column("one", "train/loss"), one_val = column("one", "val/loss");
  ASSERT_EQ(one.size(), 20u);
  ASSERT_EQ(one_val.size(), 2u);
  for (const int ranks : {2, 4}) {
    const std::string name = "ranks" + std::to_string(ranks);
    const Ended ended = on_ranks(ranks, {"train", at("run.yaml"), "output_dir=" + at(name)});
    ASSERT_EQ(ended.code, 0) << ended.err;
    EXPECT_LT(largest_difference(column(name, "train/loss"), one), 1e-5);
    EXPECT_LT(largest_difference(column(name, "val/loss"), one_val), 1e-5);
    EXPECT_NE(ended.err.find("slowest of"), std::string::npos);
  }
  ASSERT_EQ(on_ranks(2, {"train", at("run.yaml"), "output_dir=" + at("again")}).code, 0);
  EXPECT_EQ(tensors(at("again")), tensors(at("ranks2")));
  EXPECT_EQ(column("again", "train/loss"), column("ranks2", "train/loss"));
  // bf16, gradients in one bucket and in many.
  for (const char* bucket : {"1", "1000"})
    ASSERT_EQ(on_ranks(2, {"train", at("run.yaml"), "output_dir=" + at(bucket), "train.dtype=bf16",
                           std::string("dist.bucket_mb=") + bucket})
                  .code,
              0);
  EXPECT_EQ(tensors(at("1")), tensors(at("1000")));
}

TEST_F(Ranks, ZeroStagesTrainTheSame) {
  for (const bool average : {false, true}) {
    std::vector<double> expected;
    for (const int zero : {0, 1, 2}) {
      fs::remove_all(at("zero"));
      std::vector<std::string> arguments{"train", at("run.yaml"), "output_dir=" + at("zero"),
                                         "dist.zero=" + std::to_string(zero)};
      if (average) arguments.insert(arguments.end(), {"train.ema_decay=0.9", "train.ema_validation=true"});
      const Ended ended = on_ranks(2, arguments);
      ASSERT_EQ(ended.code, 0) << ended.err;
      std::vector<double> losses = column("zero", "train/loss");
      for (const double l : column("zero", "val/ema_loss")) losses.push_back(l);
      if (zero == 0) expected = losses;
      EXPECT_LT(largest_difference(losses, expected), 1e-6) << "stage " << zero;
    }
  }
}

// The mean over answers is that of all ranks' and micro-batches' answers together, however many each has.
TEST_F(Ranks, LossOfAnswersIsThatOfOneRank) {
  std::string records;
  for (int i = 0; i < 300; ++i)
    records += fmt::format("{{\"prompt\": \"{0} and {0} make \", \"completion\": \"{1}\"}}\n", i,
                           i % 3 == 0 ? std::string(static_cast<std::size_t>(i % 20), '!') : std::to_string(2 * i));
  write_text(at("records.jsonl"), records);
  ASSERT_EQ(sfa({"data", "tokenize", "--field", "prompt", "--answer-field", "completion", "--val-fraction", "0.2", "-o",
                 at("answers.h5"), at("records.jsonl")})
                .code,
            0);
  const auto with = [&](const std::string& name, const std::vector<std::string>& more) {
    std::vector<std::string> arguments{"train", at("run.yaml"), "output_dir=" + at(name),
                                       "data.train=" + at("answers.h5"), "train.loss_mask=answers"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  ASSERT_EQ(sfa(with("one", {"data.micro_batch_size=8"})).code, 0);
  for (const auto& [name, ranks, more] :
       std::vector<std::tuple<std::string, int, std::vector<std::string>>>{{"micro", 1, {"data.micro_batch_size=1"}},
                                                                           {"two", 2, {"data.micro_batch_size=2"}},
                                                                           {"zero", 4, {"dist.zero=2"}},
                                                                           {"ring", 2, {"dist.context_parallel=2"}}}) {
    const Ended ended = ranks == 1 ? sfa(with(name, more)) : on_ranks(ranks, with(name, more));
    ASSERT_EQ(ended.code, 0) << ended.err;
    EXPECT_EQ(column(name, "train/answer_tokens"), column("one", "train/answer_tokens"));
    EXPECT_LT(largest_difference(column(name, "train/loss"), column("one", "train/loss")), 1e-4) << name;
  }
  // Beside it the balance of features, whose shares each rank takes over rows of its own.
  for (const std::string key : {"dist.zero=2", "dist.context_parallel=2"}) {
    const Ended ended = on_ranks(2, with(key, {key, "model.attention.balance=0.01", "model.attention.gate=feature"}));
    ASSERT_EQ(ended.code, 0) << ended.err;
    const std::vector<double> balance = column(key, "train/balance_loss");
    ASSERT_EQ(balance.size(), 20u);
    for (const double b : balance) EXPECT_TRUE(b > 0.9 && b <= 2) << b;
    EXPECT_LT(column(key, "train/loss").back(), column(key, "train/loss").front());
  }
}

// What is saved by one number of ranks goes on with any other, at the same samples.
TEST_F(Ranks, ResumesOnAnyNumberOfRanks) {
  ASSERT_EQ(on_ranks(2, {"train", at("run.yaml"), "output_dir=" + at("half"), "train.max_steps=12",
                         "train.schedule=constant", "dist.zero=1"})
                .code,
            0);
  ASSERT_EQ(sfa({"train", at("run.yaml"), "output_dir=" + at("full"), "train.schedule=constant"}).code, 0);
  const std::vector<double> expected = column("full", "train/loss");
  for (const int ranks : {1, 2, 4}) {
    for (const int zero : {0, 1}) {
      const std::string name = "on" + std::to_string(ranks) + std::to_string(zero);
      fs::copy(at("half"), at(name), fs::copy_options::recursive);
      const Ended ended = on_ranks(ranks, {"train", at("run.yaml"), "--resume", "output_dir=" + at(name),
                                           "train.schedule=constant", "dist.zero=" + std::to_string(zero)});
      ASSERT_EQ(ended.code, 0) << ended.err;
      EXPECT_NE(ended.err.find("resuming"), std::string::npos);
      EXPECT_LT(largest_difference(column(name, "train/loss"), expected), 1e-5) << ranks << " ranks, stage " << zero;
      CheckpointReader(find_checkpoint(at(name))).verify();
    }
  }
}

TEST_F(Ranks, NanOnOneRankIsSeenByAll) {
  const Ended ended =
      program_on_ranks(2, {"train", "nan:1:7", at("run.yaml"), "train.log_every=5", "checkpoint.every=0"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_NE(ended.err.find("step 7: the loss is nan"), std::string::npos) << ended.err;
  const Ended stopped = program_on_ranks(
      2, {"train", "nan:1:7", at("run.yaml"), "output_dir=" + at("stop"), "train.guard.nonfinite=stop", "dist.zero=1"});
  EXPECT_EQ(stopped.code, 1);
  EXPECT_NE(stopped.err.find("the run stops (train.guard)"), std::string::npos) << stopped.err;
  // Said once, by rank 0.
  EXPECT_EQ(stopped.err.find("the run stops"), stopped.err.rfind("the run stops")) << stopped.err;
}

TEST_F(Ranks, WrongStartsAreRefusedInASentence) {
  const auto refused = [&](const Ended& ended, const std::string& part) {
    EXPECT_EQ(ended.code, 1);
    EXPECT_NE(ended.err.find(part), std::string::npos) << ended.err;
    EXPECT_EQ(ended.err.find(part), ended.err.rfind(part)) << ended.err;
  };
  refused(on_ranks(3, {"train", at("run.yaml")}), "8 sequences can't be shared evenly among 3 ranks");
  refused(on_ranks(2, {"train", at("run.yaml"), "data.train=nowhere.h5"}), "nowhere.h5");
  refused(on_ranks(2, {"train", at("run.yaml"), "dist.zero=3"}), "dist.zero");
  EXPECT_FALSE(fs::exists(at("run")));
  ::setenv("WORLD_SIZE", "2", 1);
  ::setenv("RANK", "0", 1);
  ::setenv("LOCAL_RANK", "0", 1);
  refused(sfa({"train", at("run.yaml")}), "start them with mpirun");
  for (const char* name : {"WORLD_SIZE", "RANK", "LOCAL_RANK"}) ::unsetenv(name);
}

}  // namespace
}  // namespace sfa::test
