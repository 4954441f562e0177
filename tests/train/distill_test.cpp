// Runs with train.distill: the distance falls, is there in the metrics, is left alone where it is not due, and a
// stopped run ends like one that was not.
#include <gtest/gtest.h>

#include "checkpoint/run_fixture.h"

namespace sfa::test {
namespace {

struct DistillRun : RunFixture {};

TEST_F(DistillRun, DrawsSparseAttentionToDense) {
  // A step that only shows the distance, its weight next to nothing, against one that matters.
  ASSERT_EQ(run("seen", {"train.distill.lambda=1e-9"}), 0) << errors();
  ASSERT_EQ(run("drawn", {"train.distill.lambda=100"}), 0) << errors();
  const auto seen = metric("seen", "train/distill_loss"), drawn = metric("drawn", "train/distill_loss");
  ASSERT_EQ(seen.size(), static_cast<std::size_t>(kSteps));
  ASSERT_EQ(drawn.size(), seen.size());
  EXPECT_EQ(seen.front(), drawn.front()) << "the first step has the same weights";
  EXPECT_GT(seen.front(), 0);
  EXPECT_LT(drawn.back(), 0.8 * seen.back());
}

TEST_F(DistillRun, StoppedAndResumedItEndsTheSame) {
  const std::vector<std::string> keys{"train.distill.lambda=1", "train.distill.every=3"};
  expect_cut_ends_like_whole(keys);
}

TEST_F(DistillRun, NeedsSparseAttention) {
  EXPECT_EQ(run("dense", {"model.attention.type=dense", "model.attention.k=0", "train.distill.lambda=1"}), 1);
  EXPECT_NE(errors().find("train.distill.lambda"), std::string::npos) << errors();
}

}  // namespace
}  // namespace sfa::test
