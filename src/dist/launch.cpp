#include "dist/launch.h"

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "core/error.h"

namespace sfa {
namespace {

struct Names {
  const char *launcher, *rank, *size, *local_rank, *local_size;
  bool mpi;
};
constexpr Names kSlurm{"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "", false};
constexpr Names kPmi{"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", true};
// The first whose size is set counts: mpirun inside a Slurm job, or torchrun's names set by hand inside either. But a
// Slurm step may have started the shell or the daemons from which another launcher started this process (below).
constexpr Names kLaunchers[] = {
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", true},
    kSlurm,
    kPmi,
    {"the environment", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", false},
};

int number(const std::string& name, const std::string& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error == std::errc() && end == text.data() + text.size() && value >= 0,
          "{}={}: a launcher sets this to a number from 0 on", name, text);
  return value;
}

}  // namespace

std::optional<std::string> process_environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? std::optional<std::string>(value) : std::nullopt;
}

Launch read_launch(const Environment& environment) {
  Launch launch;
  const auto get = [&](const char* name) -> std::optional<int> {
    const auto text = *name == '\0' ? std::nullopt : environment(name);
    return text ? std::optional<int>(number(name, *text)) : std::nullopt;
  };
  // Whether PMI's variables are those of the Slurm step itself (srun --mpi=pmi2): the same rank of as many, and no
  // local rank, which srun names otherwise. Else MPICH's or Intel's mpirun set them inside the step, whose tasks may be
  // its daemons, one a machine.
  const auto pmi_is_of_step = [&] {
    return get(kSlurm.size) && get(kPmi.size) == get(kSlurm.size) && get(kPmi.rank) == get(kSlurm.rank) &&
           !get(kPmi.local_rank);
  };
  for (const Names& n : kLaunchers) {
    const bool slurm = std::string_view(n.size) == kSlurm.size, pmi = std::string_view(n.size) == kPmi.size;
    const auto size = get(n.size);
    if (!size) continue;
    require(*size >= 1, "{}={}: there is at least one rank", n.size, *size);
    const auto rank = get(n.rank);
    require(*size == 1 || rank, "{}={} is set, but {} is not: which of them is this process?", n.size, *size, n.rank);
    require(rank.value_or(0) < *size, "{}={} and {}={}: ranks count from 0 and stay below the number of ranks", n.rank,
            rank.value_or(0), n.size, *size);
    // A step of one task says nothing of what was started inside it.
    if (slurm && (*size == 1 || (get(kPmi.size) && get(kPmi.rank) && !pmi_is_of_step()))) continue;
    if (pmi && *size == 1 && pmi_is_of_step()) continue;
    if (*size == 1) break;
    launch.launcher = n.launcher;
    launch.rank = rank.value_or(0);
    launch.size = *size;
    launch.mpi = n.mpi;
    const auto local = get(n.local_rank);
    require(local || n.mpi, "{}={} is set, but {} is not: which of its machine's ranks is this process?", n.size, *size,
            n.local_rank);
    launch.local_rank = local.value_or(0);
    launch.local_size = get(n.local_size).value_or(0);
    // Under srun MPI was asked for when PMIx or PMI2 shows itself.
    if (launch.launcher == "srun") launch.mpi = environment("PMIX_RANK") || environment("PMI_RANK");
    break;
  }
  launch.address = environment("MASTER_ADDR").value_or("");
  launch.port = get("MASTER_PORT").value_or(0);
  launch.file = environment("SFA_RENDEZVOUS").value_or("");
  require(launch.size == 1 || launch.address.empty() || (launch.port > 0 && launch.port < 65536),
          "MASTER_ADDR={} is set, but MASTER_PORT is {}: ranks meet at both", launch.address, launch.port);
  return launch;
}

void require_gpu_for(const Launch& launch, int gpus) {
  require(launch.local_rank < gpus && launch.local_size <= gpus,
          "rank {} is number {} of {} on its machine, where {} GPU{} can be seen; start one rank a GPU, or train with "
          "device=cpu",
          launch.rank, launch.local_rank + 1,
          launch.local_size > 0 ? std::to_string(launch.local_size) : std::string("its ranks"), gpus,
          gpus == 1 ? "" : "s");
}

}  // namespace sfa
