// What this program was built from and with, and the machine that it runs on: for run.json and `sfa doctor`.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace sfa {

/// version, git_revision ("unknown" outside a checkout) and git_dirty, compiler, build_type, cuda_toolkit and
/// cuda_architectures (null without CUDA), mpi, hdf5 (as loaded) and hdf5_built, blas {library, config, threads}.
nlohmann::ordered_json describe_build();

/// host, system, cpu, cores (that this process may use), openmp_threads, avx512, memory_bytes and memory_free_bytes (a
/// control group's limit counts), nvidia_driver and cuda_driver (null without), cards [{name, compute_capability,
/// memory_bytes}]; a card that this build can't ask has its name alone.
nlohmann::ordered_json describe_machine();

}  // namespace sfa
