// Which checkpoints a run folder holds, which is found, which are pruned.
#include "checkpoint/helpers.h"

namespace sfa::test {
namespace {

std::vector<std::string> names(const std::vector<fs::path>& paths) {
  std::vector<std::string> out;
  for (const fs::path& path : paths) out.push_back(path.filename().string());
  return out;
}
using Names = std::vector<std::string>;

TEST(RunFolder, ListsOnlyFinishedOnesOldestFirst) {
  const TempFolder run;
  EXPECT_TRUE(list_checkpoints(run.path()).empty());
  EXPECT_TRUE(list_checkpoints(run.path() / "none").empty());
  for (const int step : {100, 20, 123456789, 3}) save(run.path(), step, 10);
  fs::create_directory(run.path() / "step_00000200");  // no manifest
  fs::copy(run.path() / "step_00000100", run.path() / ".step_00000300.tmp");
  fs::copy(run.path() / "step_00000100", run.path() / ".step_00000301.gone");
  fs::copy(run.path() / "step_00000100", run.path() / "step_400");  // not our spelling
  fs::copy(run.path() / "step_00000100", run.path() / "step_00000x00");
  fs::copy(run.path() / "step_00000100", run.path() / "step_99999999999999999999");
  write_file(run.path() / "step_00000500", "a file");
  fs::create_directories(run.path() / "step_00000600" / "manifest.json");  // a folder of that name
  EXPECT_EQ(names(list_checkpoints(run.path())),
            (Names{"step_00000003", "step_00000020", "step_00000100", "step_123456789"}));
}

TEST(RunFolder, Find) {
  const TempFolder run;
  EXPECT_ERROR(find_checkpoint(run.path()), "holds no finished checkpoint");
  EXPECT_ERROR(find_checkpoint(run.path() / "none"), "there is no checkpoint and no run folder");
  const fs::path ten = save(run.path(), 10, 10), nine = save(run.path(), 9, 10);
  EXPECT_EQ(find_checkpoint(run.path()), ten);
  EXPECT_EQ(find_checkpoint(nine), nine);
  EXPECT_EQ(fs::canonical(find_checkpoint(nine / "")), fs::canonical(nine));
  EXPECT_ERROR(find_checkpoint(nine / "manifest.json"), "is a file");
  fs::rename(nine, run.path() / "best");
  EXPECT_EQ(find_checkpoint(run.path() / "best"), run.path() / "best");
  fs::create_directory(run.path() / "step_00000200");
  EXPECT_ERROR(find_checkpoint(run.path() / "step_00000200"), "unfinished");
  fs::copy(ten, run.path() / ".step_00000300.tmp");
  EXPECT_ERROR(find_checkpoint(run.path() / ".step_00000300.tmp"), "unfinished");
  EXPECT_EQ(find_checkpoint(run.path()), ten);
}

// Without an exchange of folders, a kill between two renames leaves the old checkpoint under its second name: it is
// still found.
TEST(RunFolder, MovedAsideStillCounts) {
  const TempFolder run;
  const fs::path ten = save(run.path(), 10, 10);
  save(run.path(), 5, 10);
  fs::rename(ten, run.path() / ".step_00000010.old");
  EXPECT_EQ(find_checkpoint(run.path()), run.path() / ".step_00000010.old");
  prune_checkpoints(run.path(), 1, 0);
  EXPECT_EQ(names(list_checkpoints(run.path())), (Names{".step_00000010.old"}));
  save(run.path(), 10, 10);
  EXPECT_EQ(names(list_checkpoints(run.path())), (Names{"step_00000010"}));
  prune_checkpoints(run.path(), 1, 0);
  EXPECT_TRUE(leftovers(run.path()).empty());
}

TEST(RunFolder, PruneRules) {
  const TempFolder run;
  const auto fill = [&] {
    for (int step = 0; step <= 100; step += 10) save(run.path(), step, 10);
  };
  fill();
  EXPECT_EQ(names(prune_checkpoints(run.path(), 2, 40)), (Names{"step_00000010", "step_00000020", "step_00000030",
                                                                "step_00000050", "step_00000060", "step_00000070"}));
  EXPECT_EQ(names(list_checkpoints(run.path())),
            (Names{"step_00000000", "step_00000040", "step_00000080", "step_00000090", "step_00000100"}));
  EXPECT_TRUE(prune_checkpoints(run.path(), 2, 40).empty());
  EXPECT_TRUE(prune_checkpoints(run.path(), 0x1'0000'0001, 0).empty()) << "more than an int holds";
  prune_checkpoints(run.path(), 3, 0);
  EXPECT_EQ(names(list_checkpoints(run.path())), (Names{"step_00000080", "step_00000090", "step_00000100"}));
  EXPECT_TRUE(prune_checkpoints(run.path(), 0, 0).empty());
  EXPECT_TRUE(prune_checkpoints(run.path(), 0, 7).empty());
  EXPECT_EQ(list_checkpoints(run.path()).size(), 3u) << "0 keeps all";
  prune_checkpoints(run.path(), 1, 0);
  EXPECT_EQ(names(list_checkpoints(run.path())), (Names{"step_00000100"}));
  EXPECT_ERROR(prune_checkpoints(run.path(), -1, 0), "cannot be negative");
  EXPECT_ERROR(prune_checkpoints(run.path(), 1, -2), "cannot be negative");
  EXPECT_TRUE(prune_checkpoints(run.path() / "none", 1, 0).empty());
}

TEST(RunFolder, PruneRemovesStaleFoldersAndNothingElse) {
  const TempFolder run;
  const fs::path good = save(run.path(), 10, 10);
  fs::copy(good, run.path() / ".step_00000020.tmp");
  fs::copy(good, run.path() / ".step_00000030.gone");
  fs::copy(good, run.path() / ".step_00000010.old");
  fs::create_directory(run.path() / "step_00000005");  // no manifest: perhaps somebody's, never deleted
  fs::create_directory(run.path() / "data");
  write_file(run.path() / "metrics.jsonl", "{}\n");
  CheckpointWriter alive(run.path(), 40);
  EXPECT_TRUE(prune_checkpoints(run.path(), 1, 0).empty());
  EXPECT_EQ(leftovers(run.path()), (Names{".step_00000040.tmp"})) << "a living writer keeps its folder";
  EXPECT_TRUE(fs::exists(run.path() / "data") && fs::exists(run.path() / "metrics.jsonl"));
  EXPECT_TRUE(fs::exists(run.path() / "step_00000005"));
  alive.publish({alive.finish_file()}, {}, "");
  EXPECT_EQ(find_checkpoint(run.path()), run.path() / "step_00000040");
}

}  // namespace
}  // namespace sfa::test
