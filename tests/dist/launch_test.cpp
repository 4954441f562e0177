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

using Variables = std::map<std::string, std::string>;
Variables joined(Variables a, const Variables& b) {
  a.insert(b.begin(), b.end());
  return a;
}
Variables slurm_step(int rank, int size, int local) {
  return {{"SLURM_STEP_NUM_TASKS", std::to_string(size)},
          {"SLURM_PROCID", std::to_string(rank)},
          {"SLURM_LOCALID", std::to_string(local)}};
}
Variables pmi(int rank, int size) {
  return {{"PMI_RANK", std::to_string(rank)}, {"PMI_SIZE", std::to_string(size)}};
}
Variables hydra(int rank, int size, int local, int local_size) {
  return joined(pmi(rank, size),
                {{"MPI_LOCALRANKID", std::to_string(local)}, {"MPI_LOCALNRANKS", std::to_string(local_size)}});
}
Variables torchrun(int rank, int size, int local) {
  return {{"RANK", std::to_string(rank)}, {"WORLD_SIZE", std::to_string(size)}, {"LOCAL_RANK", std::to_string(local)}};
}
void expect_launch(const Launch& l, const std::string& launcher, int rank, int size, int local, bool mpi) {
  EXPECT_EQ(l.launcher, launcher);
  EXPECT_EQ(l.rank, rank);
  EXPECT_EQ(l.size, size);
  EXPECT_EQ(l.local_rank, local);
  EXPECT_EQ(l.mpi, mpi);
}

// `srun --pty bash`, or the one daemon that mpirun starts by srun.
TEST(Launch, AStepOfOneTaskHidesNoLauncher) {
  const Variables step = slurm_step(0, 1, 0);
  EXPECT_EQ(launch_in(step).size, 1);
  EXPECT_TRUE(launch_in(step).launcher.empty());
  expect_launch(launch_in(joined(step, hydra(3, 4, 3, 4))), "mpirun", 3, 4, 3, true);
  expect_launch(launch_in(joined(step, hydra(0, 4, 0, 4))), "mpirun", 0, 4, 0, true);
  expect_launch(launch_in(joined(step, pmi(3, 4))), "mpirun", 3, 4, 0, true);
  expect_launch(launch_in(joined(step, torchrun(1, 2, 1))), "the environment", 1, 2, 1, false);
  const Variables open_mpi{
      {"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "2"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "2"}};
  expect_launch(launch_in(joined(step, open_mpi)), "mpirun", 2, 4, 2, true);
  // A shell that `srun --mpi=pmi2` started, then torchrun's names inside it.
  expect_launch(launch_in(joined(joined(step, pmi(0, 1)), torchrun(1, 2, 1))), "the environment", 1, 2, 1, false);
  EXPECT_EQ(launch_in(joined(step, pmi(0, 1))).size, 1);
  // mpirun -np 1 is asked for, whatever else is set.
  EXPECT_EQ(launch_in(joined(joined(step, hydra(0, 1, 0, 1)), torchrun(1, 2, 1))).size, 1);
}

TEST(Launch, MpirunInsideALargerStep) {
  // Open MPI's and Hydra's daemons are started by srun, one a machine.
  const Variables open_mpi{
      {"OMPI_COMM_WORLD_SIZE", "8"}, {"OMPI_COMM_WORLD_RANK", "5"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}};
  expect_launch(launch_in(joined(slurm_step(1, 2, 0), open_mpi)), "mpirun", 5, 8, 1, true);
  expect_launch(launch_in(joined(slurm_step(1, 2, 0), hydra(5, 8, 1, 4))), "mpirun", 5, 8, 1, true);
  // As many ranks as daemons, both on the first machine.
  expect_launch(launch_in(joined(slurm_step(0, 2, 0), hydra(0, 2, 0, 2))), "mpirun", 0, 2, 0, true);
  expect_launch(launch_in(joined(slurm_step(0, 2, 0), hydra(1, 2, 1, 2))), "mpirun", 1, 2, 1, true);
  EXPECT_EQ(launch_in(joined(slurm_step(1, 2, 0), hydra(0, 1, 0, 1))).size, 1);
}

TEST(Launch, PmiOfTheStepItself) {
  expect_launch(launch_in(joined(slurm_step(5, 8, 1), pmi(5, 8))), "srun", 5, 8, 1, true);
  expect_launch(launch_in(joined(slurm_step(0, 8, 0), pmi(0, 8))), "srun", 0, 8, 0, true);
  // torchrun's names set by hand in a step of srun do not count.
  expect_launch(launch_in(joined(slurm_step(3, 4, 1), torchrun(1, 2, 0))), "srun", 3, 4, 1, false);
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
