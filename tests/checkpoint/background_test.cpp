// Checkpoints written while training goes on: the copy is what is written, errors surface, nothing is lost.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <thread>

#include "checkpoint/background.h"
#include "checkpoint/faults.h"
#include "checkpoint/helpers.h"

namespace sfa::test {
namespace {

constexpr std::int64_t kWidth = 2000;

void begin_save(BackgroundCheckpoint& background, std::int64_t step) {
  for (const Sample& sample : samples(static_cast<std::uint64_t>(step), kWidth)) {
    void* memory = background.reserve(sample.tensor, 0, sample.tensor.numel());
    std::copy(sample.data.begin(), sample.data.end(), static_cast<unsigned char*>(memory));
  }
  background.start(step, state_of(static_cast<std::uint64_t>(step)), "seed: 1\n");
}

bool is_whole(const fs::path& folder, std::uint64_t content) {
  CheckpointReader reader(folder);
  reader.verify();
  return holds(reader, content, kWidth);
}

struct Background : ::testing::Test {
  TempFolder run;
  void TearDown() override {
    faults.hold_fsync = false;
    faults.heal();
  }
};

TEST_F(Background, WritesEveryCopyAndPrunes) {
  int allocations = 0;
  BackgroundCheckpoint background(run.path(), {2, 3}, [&](std::size_t bytes) {
    ++allocations;
    return std::shared_ptr<void>(std::malloc(bytes + 1), std::free);
  });
  EXPECT_TRUE(background.wait().empty());
  for (int step = 1; step <= 7; ++step) begin_save(background, step);
  EXPECT_EQ(background.wait().filename(), "step_00000007");
  EXPECT_EQ(list_checkpoints(run.path()).size(), 3u);  // 3 by the rule of every third, 6 and 7 as the newest
  for (const fs::path& folder : list_checkpoints(run.path()))
    EXPECT_TRUE(is_whole(folder, static_cast<std::uint64_t>(CheckpointReader(folder).step())));
  EXPECT_EQ(allocations, 6) << "memory is allocated for the first checkpoint alone";
  EXPECT_EQ(background.memory_bytes(), 12u * kWidth * 2 + 2 * kWidth + 8 + 3 * kWidth);
}

TEST_F(Background, TrainingGoesOnWhileTheDiskIsSlow) {
  BackgroundCheckpoint background(run.path(), {});
  faults.hold_fsync = true;
  begin_save(background, 1);  // returns although fsync does not
  EXPECT_TRUE(background.writing());
  EXPECT_TRUE(list_checkpoints(run.path()).empty());
  std::atomic<bool> second_began{false};
  std::thread trainer([&] {
    begin_save(background, 2);
    second_began = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(second_began) << "the copy of a write in flight must not be touched";
  faults.hold_fsync = false;
  trainer.join();
  EXPECT_EQ(background.wait().filename(), "step_00000002");
  EXPECT_FALSE(background.writing());
  EXPECT_TRUE(is_whole(find_checkpoint(run.path()), 2));
}

TEST_F(Background, AnErrorSurfacesAtTheNextCallAndTrainingCanGoOn) {
  BackgroundCheckpoint background(run.path(), {});
  begin_save(background, 1);
  background.wait();
  faults.fail("pwrite", 3, ENOSPC);
  begin_save(background, 2);
  EXPECT_ERROR(background.wait(), "No space left on device");
  EXPECT_EQ(background.wait().filename(), "step_00000001") << "an error is thrown once";
  EXPECT_TRUE(is_whole(find_checkpoint(run.path()), 1));
  EXPECT_TRUE(leftovers(run.path()).empty());
  faults.fail("fsync", 1, EIO);
  begin_save(background, 3);
  EXPECT_ERROR(begin_save(background, 4), "Input/output error");
  faults.heal();
  begin_save(background, 5);
  EXPECT_EQ(background.wait().filename(), "step_00000005");
  EXPECT_TRUE(is_whole(find_checkpoint(run.path()), 5));
}

TEST_F(Background, TheDestructorWaitsAndSurvivesErrors) {
  {
    BackgroundCheckpoint background(run.path(), {});
    begin_save(background, 1);
  }
  EXPECT_TRUE(is_whole(find_checkpoint(run.path()), 1));
  faults.fail("pwrite", 1, ENOSPC);
  {
    BackgroundCheckpoint background(run.path(), {});
    begin_save(background, 2);
  }
  faults.heal();
  EXPECT_TRUE(is_whole(find_checkpoint(run.path()), 1));
  EXPECT_EQ(list_checkpoints(run.path()).size(), 1u);
}

TEST_F(Background, MisuseAndNoMemory) {
  BackgroundCheckpoint background(run.path(), {}, [](std::size_t bytes) {
    if (bytes > 10'000) throw std::bad_alloc();
    return std::shared_ptr<void>(std::malloc(bytes + 1), std::free);
  });
  EXPECT_ERROR(background.start(1, {}, ""), "without tensors");
  const CheckpointTensor small{"a", DType::f32, {10}}, large{"b", DType::f32, {10'000}};
  std::memset(background.reserve(small, 0, 10), 0, 40);
  EXPECT_ERROR(background.reserve(large, 0, 10'000), "not enough memory to save in the background");
  background.discard();
  EXPECT_ERROR(background.start(1, {}, ""), "without tensors");
  std::memset(background.reserve(small, 0, 10), 0, 40);
  background.start(1, {}, "");
  EXPECT_EQ(background.wait().filename(), "step_00000001");
  EXPECT_EQ(CheckpointReader(background.wait()).tensors().size(), 1u);
  // What the writer refuses comes later.
  std::memset(background.reserve(small, 0, 5), 0, 20);
  background.start(2, {}, "");
  EXPECT_ERROR(background.wait(), "[5, 10) are in no piece");
}

TEST_F(Background, KilledAtRandomMoments) {
  RandomLife life([&] { save(run.path(), 1, kWidth); });
  std::int64_t newest = 1;
  for (int round = 0; round < 40; ++round) {
    const pid_t child = start_child([&] {
      BackgroundCheckpoint background(run.path(), {2, 0});
      for (std::int64_t step = newest + 1;; ++step) begin_save(background, step);
    });
    life.sleep();
    ::kill(child, SIGKILL);
    ASSERT_TRUE(WIFSIGNALED(wait_for(child)));
    for (const fs::path& folder : list_checkpoints(run.path()))
      ASSERT_TRUE(is_whole(folder, static_cast<std::uint64_t>(CheckpointReader(folder).step())));
    const std::int64_t found = CheckpointReader(find_checkpoint(run.path())).step();
    ASSERT_GE(found, newest);
    newest = found;
  }
  EXPECT_GT(newest, 1);
}

// A folder in which nothing is locked yet looks like one left behind: no rank goes on before rank 0 has pruned.
TEST(PruneTogether, AllRanksWaitForRankZero) {
  const TempFolder run;
  for (const int step : {1, 2, 3}) save(run.path(), step, 10);
  int met = 0;
  const auto gather = [&](const std::string& mine) {
    ++met;
    EXPECT_EQ(list_checkpoints(run.path()).size(), 1u) << "rank 0 comes when it has pruned";
    return std::vector<std::string>{mine};
  };
  prune_together({0, gather}, run.path(), {1, 0});
  EXPECT_EQ(met, 1);
  prune_together({1, gather}, run.path(), {1, 0});
  EXPECT_EQ(met, 2) << "the others meet it there";
  EXPECT_ERROR(prune_together({0, gather}, run.path(), {-1, 0}), "cannot be negative");
  EXPECT_EQ(met, 3) << "and are not left waiting when it fails";
}

}  // namespace
}  // namespace sfa::test
