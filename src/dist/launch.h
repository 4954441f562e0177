// Who started this process, and as which of how many: read from the environment that a launcher leaves. Nothing is
// opened or contacted here.
//   Open MPI   OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE
//   MPICH      PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS
//   Slurm      SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID: steps of srun; a batch script itself is one process,
//              and a step of one task may hold another launcher's ranks
//   torchrun   RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE
// Where ranks meet without MPI: MASTER_ADDR and MASTER_PORT, or SFA_RENDEZVOUS, a file that all of them see.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace sfa {

struct Launch {
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 0;  // on this machine; local_size 0 = not told
  std::string launcher;                // "mpirun", "srun", "the environment"; empty = started alone
  bool mpi = false;                    // the launcher talks to MPI libraries (srun: when it was told to)
  std::string address;                 // MASTER_ADDR, or empty
  int port = 0;                        // MASTER_PORT
  std::string file;                    // SFA_RENDEZVOUS, or empty
};

/// The value of an environment variable, or nothing.
using Environment = std::function<std::optional<std::string>(const char* name)>;
/// That of this process.
std::optional<std::string> process_environment(const char* name);

/// Throws Error with one sentence naming the variables when they contradict each other or are no numbers.
Launch read_launch(const Environment& environment);

/// Throws Error unless this machine's `gpus` cards serve its ranks, one each.
void require_gpu_for(const Launch& launch, int gpus);

}  // namespace sfa
