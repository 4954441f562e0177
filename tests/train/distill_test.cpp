// Runs with train.distill: the distance falls, is there in the metrics, is left alone where it is not due, and a
// stopped run ends like one that was not.
#include <gtest/gtest.h>

#include <sstream>

#include "checkpoint/run_fixture.h"

namespace sfa::test {
namespace {

struct DistillRun : RunFixture {
  int run(const std::string& output, std::vector<std::string> more) {
    std::vector<std::string> arguments{"train", "run.yaml", "--resume", "output_dir=" + output, "train.log_every=1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return exit_code(arguments);
  }
  [[nodiscard]] std::vector<double> distances(const std::string& output) const {
    std::vector<double> all;
    std::istringstream text(read_file(folder.path() / output / "metrics.jsonl"));
    for (std::string line; std::getline(text, line);) {
      const auto object = nlohmann::json::parse(line);
      if (object.contains("train/distill_loss")) all.push_back(object["train/distill_loss"].get<double>());
    }
    return all;
  }
};

TEST_F(DistillRun, DrawsSparseAttentionToDense) {
  // A step that only shows the distance, its weight next to nothing, against one that matters.
  ASSERT_EQ(run("seen", {"train.distill.lambda=1e-9"}), 0) << errors();
  ASSERT_EQ(run("drawn", {"train.distill.lambda=100"}), 0) << errors();
  const auto seen = distances("seen"), drawn = distances("drawn");
  ASSERT_EQ(seen.size(), static_cast<std::size_t>(kSteps));
  ASSERT_EQ(drawn.size(), seen.size());
  EXPECT_EQ(seen.front(), drawn.front()) << "the first step has the same weights";
  EXPECT_GT(seen.front(), 0);
  EXPECT_LT(drawn.back(), 0.8 * seen.back());
}

TEST_F(DistillRun, StoppedAndResumedItEndsTheSame) {
  const std::vector<std::string> keys{"train.distill.lambda=1", "train.distill.every=3"};
  ASSERT_EQ(run("whole", keys), 0) << errors();
  const pid_t child = start({"train", "run.yaml", "--resume", "output_dir=cut", "train.log_every=1", keys[0], keys[1]});
  while (list_checkpoints(folder.path() / "cut").empty()) ::usleep(1000);
  ::kill(child, SIGKILL);
  (void)wait_for(child);
  ASSERT_EQ(run("cut", keys), 0) << errors();
  EXPECT_EQ(final_bytes("whole"), final_bytes("cut"));
}

TEST_F(DistillRun, NeedsSparseAttention) {
  EXPECT_EQ(run("dense", {"model.attention.type=dense", "model.attention.k=0", "train.distill.lambda=1"}), 1);
  EXPECT_NE(errors().find("train.distill.lambda"), std::string::npos) << errors();
}

}  // namespace
}  // namespace sfa::test
