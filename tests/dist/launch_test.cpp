// What launchers tell a process, and what is refused.
#include "dist/launch.h"

#include <gtest/gtest.h>

#include <map>

#include "checkpoint/helpers.h"
#include "core/error.h"

namespace sfa::test {
namespace {

Launch launch_in(std::map<std::string, std::string> variables) {
  return read_launch([&](const char* name) -> std::optional<std::string> {
    const auto it = variables.find(name);
    return it == variables.end() ? std::nullopt : std::optional<std::string>(it->second);
  });
}

TEST(Launch, AloneWithoutALauncher) {
  const Launch l = launch_in({});
  EXPECT_EQ(l.size, 1);
  EXPECT_EQ(l.rank, 0);
  EXPECT_TRUE(l.launcher.empty());
  EXPECT_EQ(launch_in({{"OMPI_COMM_WORLD_SIZE", "1"}, {"OMPI_COMM_WORLD_RANK", "0"}}).size, 1);
  // A batch script of Slurm is one process, however many tasks the job has.
  EXPECT_EQ(launch_in({{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}}).size, 1);
}

TEST(Launch, OpenMpi) {
  const Launch l = launch_in({{"OMPI_COMM_WORLD_SIZE", "8"},
                              {"OMPI_COMM_WORLD_RANK", "5"},
                              {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                              {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}});
  EXPECT_EQ(l.rank, 5);
  EXPECT_EQ(l.size, 8);
  EXPECT_EQ(l.local_rank, 1);
  EXPECT_EQ(l.local_size, 4);
  EXPECT_TRUE(l.mpi);
}

TEST(Launch, Slurm) {
  std::map<std::string, std::string> step{{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "3"}, {"SLURM_LOCALID", "1"}};
  EXPECT_EQ(launch_in(step).rank, 3);
  EXPECT_EQ(launch_in(step).local_rank, 1);
  EXPECT_FALSE(launch_in(step).mpi);
  step["PMIX_RANK"] = "3";
  EXPECT_TRUE(launch_in(step).mpi);
}

TEST(Launch, Variables) {
  const Launch l = launch_in(
      {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}, {"MASTER_ADDR", "node0"}, {"MASTER_PORT", "29500"}});
  EXPECT_EQ(l.rank, 1);
  EXPECT_EQ(l.address, "node0");
  EXPECT_EQ(l.port, 29500);
  EXPECT_FALSE(l.mpi);
}

TEST(Launch, ContradictionsAreRefused) {
  EXPECT_ERROR(launch_in({{"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}}), "RANK is not");
  EXPECT_ERROR(launch_in({{"WORLD_SIZE", "2"}, {"RANK", "0"}}), "LOCAL_RANK is not");
  EXPECT_ERROR(launch_in({{"WORLD_SIZE", "2"}, {"RANK", "2"}, {"LOCAL_RANK", "0"}}), "RANK=2 and WORLD_SIZE=2");
  EXPECT_ERROR(launch_in({{"WORLD_SIZE", "two"}, {"RANK", "0"}}), "WORLD_SIZE=two");
  EXPECT_ERROR(launch_in({{"WORLD_SIZE", "0"}, {"RANK", "0"}}), "at least one rank");
  EXPECT_ERROR(launch_in({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}, {"MASTER_ADDR", "a"}}),
               "MASTER_PORT");
}

TEST(Launch, EveryRankOfAMachineNeedsAGpu) {
  Launch l;
  l.size = 4;
  l.rank = l.local_rank = 2;
  l.local_size = 4;
  EXPECT_ERROR(require_gpu_for(l, 2), "rank 2 is number 3 of 4 on its machine, where 2 GPUs can be seen");
  l.rank = l.local_rank = 1;
  EXPECT_ERROR(require_gpu_for(l, 2), "number 2 of 4");
  require_gpu_for(l, 4);
}

}  // namespace
}  // namespace sfa::test
