#include "core/environment.h"

#include <omp.h>
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/build_config.h"
#include "core/build_facts.h"
#include "core/context.h"
#include "core/device_cuda.h"
#include "core/git_revision.h"
#include "core/hdf5.h"
#include "core/memory.h"

// OpenBLAS's own; null with another BLAS.
extern "C" char* openblas_get_config() __attribute__((weak));
extern "C" int openblas_get_num_threads() __attribute__((weak));

namespace sfa {
namespace {
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

Json text_or_null(const std::string& text) {
  return text.empty() ? Json(nullptr) : Json(text);
}

std::string first_line(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

// The value behind `key` and a separator, without quotes, in the first line that begins so.
std::string value_of(const fs::path& file, const std::string& key, char separator) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    std::string value = line.substr(std::min(line.size(), line.find(separator) + 1));
    std::erase(value, '"');
    return value.substr(std::min(value.size(), value.find_first_not_of(" \t")));
  }
  return "";
}

int usable_cores() {
  cpu_set_t set;
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                       : static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  ..." -> "580.95.05"
std::string nvidia_driver() {
  std::istringstream words(first_line("/proc/driver/nvidia/version"));
  for (std::string word; words >> word;)
    if (word.find('.') != std::string::npos && word.find_first_not_of("0123456789.") == std::string::npos) return word;
  return "";
}

Json cards_here() {
  Json all = Json::array();
  if constexpr (kHasCuda) {
    for (const cuda_ops::Card& c : cuda_ops::cards())
      all.push_back({{"name", c.name},
                     {"compute_capability", fmt::format("{}.{}", c.compute_capability / 10, c.compute_capability % 10)},
                     {"memory_bytes", c.memory}});
  }
  if (!all.empty()) return all;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/proc/driver/nvidia/gpus", error))
    all.push_back({{"name", value_of(entry.path() / "information", "Model", ':')}});
  return all;
}

}  // namespace

Json describe_build() {
  Json blas = {{"library", fs::path(kBlasLibrary).filename().string()}, {"config", nullptr}, {"threads", nullptr}};
  if (openblas_get_config) blas["config"] = openblas_get_config();
  if (openblas_get_num_threads) blas["threads"] = openblas_get_num_threads();
  return {{"version", kVersion},
          {"git_revision", kGitRevision},
          {"git_dirty", kGitDirty},
          {"compiler", kCompiler},
          {"build_type", kBuildType},
          {"cuda_toolkit", kHasCuda ? Json(kCudaToolkit) : Json(nullptr)},
          {"cuda_architectures", text_or_null(kCudaArchitectures)},
          {"mpi", kHasMpi},
          {"nccl", kHasNccl},
          {"hdf5", hdf5::library_version()},
          {"hdf5_built", kHdf5Version},
          {"blas", blas}};
}

Json describe_machine() {
  utsname system{};
  ::uname(&system);
  const std::string name = value_of("/etc/os-release", "PRETTY_NAME", '=');
  const MemoryThere memory = host_memory();
  Json out = {{"host", system.nodename},
              {"system", fmt::format("{}, {} {} {}", name.empty() ? "unknown" : name, system.sysname, system.release,
                                     system.machine)},
              {"cpu", Context(Device::cpu).device_name()},
              {"cores", usable_cores()},
              {"openmp_threads", omp_get_max_threads()},
              {"avx512", has_avx512()},
              {"memory_bytes", memory.total},
              {"memory_free_bytes", memory.free},
              {"nvidia_driver", text_or_null(nvidia_driver())},
              {"cuda_driver", nullptr},
              {"cards", cards_here()}};
  if constexpr (kHasCuda) out["cuda_driver"] = text_or_null(cuda_ops::driver_cuda_version());
  return out;
}

}  // namespace sfa
