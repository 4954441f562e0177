// Runs with model.attention.balance and model.attention.gate: the balance is in the metrics and comes nearer to 1 where
// it weighs something, gates are learnt and do not decay, and a stopped run ends like one that was not.
#include <gtest/gtest.h>

#include "checkpoint/run_fixture.h"

namespace sfa::test {
namespace {

struct BalanceRun : RunFixture {};

TEST_F(BalanceRun, WeightBringsTheLoadNearerToOne) {
  // A step that only shows the balance, its weight next to nothing, against one that matters.
  ASSERT_EQ(run("seen", {"model.attention.balance=1e-9"}), 0) << errors();
  ASSERT_EQ(run("balanced", {"model.attention.balance=1"}), 0) << errors();
  ASSERT_EQ(run("without", {}), 0) << errors();
  const auto seen = metric("seen", "train/balance_loss"), balanced = metric("balanced", "train/balance_loss");
  ASSERT_EQ(seen.size(), static_cast<std::size_t>(kSteps));
  ASSERT_EQ(balanced.size(), seen.size());
  EXPECT_TRUE(metric("without", "train/balance_loss").empty());
  EXPECT_EQ(seen.front(), balanced.front()) << "the first step has the same weights";
  for (const double b : seen) EXPECT_TRUE(b >= 0.9 && b <= 4) << b << ": 1 where all are kept alike, at most D / k";
  EXPECT_LT(balanced.back() - 1, 0.8 * (seen.back() - 1));
}

TEST_F(BalanceRun, MicroBatchesOfAnySizeWeighItAlike) {
  // Shares are taken over a micro-batch, so the gradients differ; the weight does not.
  ASSERT_EQ(run("two", {"model.attention.balance=0.01", "train.max_steps=1"}), 0) << errors();
  ASSERT_EQ(run("four", {"model.attention.balance=0.01", "train.max_steps=1", "data.micro_batch_size=4"}), 0)
      << errors();
  const auto two = metric("two", "train/balance_loss"), four = metric("four", "train/balance_loss");
  ASSERT_EQ(two.size(), 1u);
  EXPECT_NEAR(two.front(), four.front(), 0.1 * four.front());
}

TEST_F(BalanceRun, StoppedAndResumedItEndsTheSame) {
  const std::vector<std::string> keys{"model.attention.balance=0.1", "model.attention.gate=feature"};
  expect_cut_ends_like_whole(keys);
}

TEST_F(BalanceRun, AResumedRunMayChangeTheWeightButNotTheGate) {
  ASSERT_EQ(run("run", {"model.attention.balance=0.1", "train.max_steps=12"}), 0) << errors();
  EXPECT_EQ(run("run", {"model.attention.gate=feature"}), 1);
  EXPECT_NE(errors().find("gate"), std::string::npos) << errors();
  EXPECT_EQ(run("run", {}), 0) << errors();
}

TEST_F(BalanceRun, NeedsSparseAttention) {
  for (const std::string key : {"balance=1", "gate=feature"}) {
    EXPECT_EQ(run("dense", {"model.attention.type=dense", "model.attention.k=0", "model.attention." + key}), 1);
    EXPECT_NE(errors().find("model.attention." + key.substr(0, key.find('='))), std::string::npos) << errors();
  }
}

}  // namespace
}  // namespace sfa::test
