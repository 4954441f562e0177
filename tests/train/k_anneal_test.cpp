// Runs with train.k_anneal: the course, what metrics and validation say of it, and that a stopped run ends like one
// that was not.
#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/run_fixture.h"
#include "models/model.h"

namespace sfa::test {
namespace {

struct AnnealRun : RunFixture {};

TEST(AnnealedK, GoesDownByEqualShares) {
  EXPECT_EQ(annealed_k(32, 8, 0, false), 32);
  EXPECT_EQ(annealed_k(32, 8, 0.5, false), 16);
  EXPECT_EQ(annealed_k(32, 8, 1, false), 8);
  EXPECT_EQ(annealed_k(32, 8, 7, false), 8) << "and stays there";
  EXPECT_EQ(annealed_k(8, 12, 0.3, false), 12) << "it never goes up";
  EXPECT_EQ(annealed_k(0, 12, 0, false), 12) << "0 is no annealing";
  int before = 64, smallest_step = 64;
  for (int i = 0; i <= 1000; ++i) {
    const int k = annealed_k(64, 6, i / 1000.0, false);
    EXPECT_LE(k, before);
    EXPECT_GE(k, before - 1) << "a feature at a time";
    EXPECT_EQ(annealed_k(64, 6, i / 1000.0, true) % 2, 0);
    smallest_step = std::min(smallest_step, k);
    before = k;
  }
  EXPECT_EQ(smallest_step, 6);
}

TEST_F(AnnealRun, MetricsSayTheCourse) {
  ASSERT_EQ(run("annealed", {"train.k_anneal.from=12", "train.k_anneal.until=0.5"}), 0) << errors();
  const auto k = metric("annealed", "train/k");
  ASSERT_EQ(k.size(), static_cast<std::size_t>(kSteps));
  for (int step = 0; step < kSteps; ++step)
    EXPECT_EQ(k[static_cast<std::size_t>(step)], annealed_k(12, 4, step / (0.5 * kSteps), false)) << step;
  EXPECT_EQ(k.front(), 12);
  EXPECT_EQ(k.back(), 4);
  ASSERT_EQ(run("plain", {}), 0) << errors();
  EXPECT_TRUE(metric("plain", "train/k").empty());
  EXPECT_NE(metric("plain", "train/loss")[1], metric("annealed", "train/loss")[1]);
}

// The model that a checkpoint gives is the one that validation has seen, in the middle of the course too.
TEST_F(AnnealRun, ValidatesWithTheFinalK) {
  const std::string half = std::to_string(kSteps / 4);
  ASSERT_EQ(run("annealed", {"data.val=data.h5", "train.k_anneal.from=12", "train.eval_every=" + half,
                             "checkpoint.every=" + half, "checkpoint.keep_last=0"}),
            0)
      << errors();
  const auto validated = metric("annealed", "val/loss");
  ASSERT_GE(validated.size(), 2u);
  ASSERT_GT(metric("annealed", "train/k")[static_cast<std::size_t>(kSteps / 4 - 1)], 4);
  // A run of no annealing that begins with these weights, and learns nothing, has the same loss.
  ASSERT_EQ(run("same", {"init_from=" + list_checkpoints(folder.path() / "annealed").front().string(),
                         "data.val=data.h5", "train.max_steps=1", "train.lr=1e-30", "train.warmup_steps=0"}),
            0)
      << errors();
  EXPECT_EQ(metric("same", "val/loss").back(), validated.front());
}

TEST_F(AnnealRun, StoppedAndResumedItEndsTheSame) {
  const std::vector<std::string> keys{"train.k_anneal.from=12", "train.k_anneal.until=0.9"};
  expect_cut_ends_like_whole(keys);
}

TEST_F(AnnealRun, RefusesACourseThatCannotBe) {
  EXPECT_EQ(run("long", {"train.k_anneal.from=8", "train.k_anneal.until=1.5"}), 1);
  EXPECT_NE(errors().find("train.k_anneal.until"), std::string::npos) << errors();
  EXPECT_EQ(run("dense", {"model.attention.type=dense", "model.attention.k=0", "train.k_anneal.from=8"}), 1);
  EXPECT_NE(errors().find("train.k_anneal.from"), std::string::npos) << errors();
}

}  // namespace
}  // namespace sfa::test
