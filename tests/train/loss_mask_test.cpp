// Runs with train.loss_mask: the loss is that of answers, in metrics and in validation, whatever the micro-batch; a
// step without one says so and changes nothing but by decay; data that can't tell is refused.
#include <gtest/gtest.h>

#include "checkpoint/run_fixture.h"

namespace sfa::test {
namespace {

struct LossMaskRun : RunFixture {
  void SetUp() override {
    RunFixture::SetUp();
    std::string records;
    for (int i = 0; i < 600; ++i)
      records += fmt::format("{{\"prompt\": \"{} + {} = \", \"completion\": \"{}\"}}\n", i % 10, i % 7, i % 10 + i % 7);
    write_file(folder.path() / "records.jsonl", records);
    ASSERT_EQ(exit_code({"data", "tokenize", "--field", "prompt", "--answer-field", "completion", "--val-fraction",
                         "0.2", "--output", "answers.h5", "records.jsonl"}),
              0)
        << errors();
  }
  static std::vector<std::string> masked(std::vector<std::string> more, const std::string& data = "answers.h5") {
    more.insert(more.begin(), {"data.train=" + data, "train.loss_mask=answers"});
    return more;
  }
  int run(const std::string& output, std::vector<std::string> more, const std::string& data = "answers.h5") {
    return RunFixture::run(output, masked(std::move(more), data));
  }
};

TEST_F(LossMaskRun, IsTheMeanOverAnswersHoweverTheBatchIsCut) {
  ASSERT_EQ(run("four", {"data.micro_batch_size=4"}), 0) << errors();
  ASSERT_EQ(run("one", {"data.micro_batch_size=1"}), 0) << errors();
  ASSERT_EQ(run("all", {"train.loss_mask=none"}), 0) << errors();
  const auto four = metric("four", "train/loss"), one = metric("one", "train/loss"), all = metric("all", "train/loss");
  ASSERT_EQ(four.size(), static_cast<std::size_t>(kSteps));
  for (std::size_t i = 0; i < four.size(); ++i) EXPECT_NEAR(four[i], one[i], 1e-3) << "step " << i;
  EXPECT_NE(four.front(), all.front());
  EXPECT_LT(four.back(), four.front() - 1) << "answers are learnt";
  EXPECT_NEAR(metric("four", "grad_norm").front(), metric("one", "grad_norm").front(), 1e-3);
  for (const double n : metric("four", "train/answer_tokens")) EXPECT_TRUE(n > 0 && n < 4 * 32) << n;
  EXPECT_TRUE(metric("all", "train/answer_tokens").empty());
  // Validation counts what training counts: answers are easier than sums of random digits.
  EXPECT_LT(metric("four", "val/loss").back(), metric("all", "val/loss").back());
}

TEST_F(LossMaskRun, AStepWithoutAnswersIsSaid) {
  std::string records;
  for (int i = 0; i < 60; ++i)
    records += fmt::format("{{\"prompt\": \"{}\", \"completion\": \"\"}}\n", std::string(40, 'p'));
  records += "{\"prompt\": \"p\", \"completion\": \"a\"}\n";
  write_file(folder.path() / "few.jsonl", records);
  ASSERT_EQ(exit_code({"data", "tokenize", "--field", "prompt", "--answer-field", "completion", "--output", "few.h5",
                       "few.jsonl"}),
            0);
  ASSERT_EQ(run("few", {"train.max_steps=3", "data.shuffle=false"}, "few.h5"), 0) << errors();
  EXPECT_NE(errors().find("step 1: no target is an answer"), std::string::npos) << errors();
  EXPECT_EQ(metric("few", "train/loss"), std::vector<double>(3));
  EXPECT_EQ(metric("few", "grad_norm"), std::vector<double>(3));
  EXPECT_EQ(metric("few", "train/answer_tokens"), std::vector<double>(3));
}

TEST_F(LossMaskRun, StoppedAndResumedItEndsTheSame) {
  expect_cut_ends_like_whole(masked({}));
}

TEST_F(LossMaskRun, NeedsDataThatTells) {
  EXPECT_EQ(run("plain", {}, "data.h5"), 1);
  EXPECT_NE(errors().find("does not say which tokens are answers"), std::string::npos) << errors();
  EXPECT_EQ(run("noise", {"train.noise_scale=true"}), 1);
  EXPECT_NE(errors().find("train.noise_scale"), std::string::npos) << errors();
}

}  // namespace
}  // namespace sfa::test
