#include "analysis/doctor.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "analysis/run_plan.h"
#include "attention/flash/cpu/kernels.h"
#include "core/build_config.h"
#include "core/context.h"
#include "core/environment.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/progress.h"
#include "ops/linear/linear.h"

namespace sfa {
namespace {
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using Level = Finding::Level;

// One layer's product on the CPU against plain loops: whether BLAS computes what it should.
Finding check_blas(const Json& build) {
  constexpr std::int64_t N = 65, I = 70, O = 33;
  Arena arena("check", Device::cpu);
  Tensor x, w, y;
  const auto plan = [&] {
    x = arena.take(DType::f32, {N, I});
    w = arena.take(DType::f32, {O, I});
    y = arena.take(DType::f32, {N, O});
  };
  plan();
  arena.bind();
  plan();
  for (std::int64_t i = 0; i < x.numel(); ++i) x.as<float>()[i] = static_cast<float>(i % 17) - 8;
  for (std::int64_t i = 0; i < w.numel(); ++i) w.as<float>()[i] = static_cast<float>(i % 13) - 6;
  Context ctx(Device::cpu);
  linear_forward(ctx, {x, w, Tensor{}, y, Tensor{}});
  bool right = true;
  for (std::int64_t n = 0; n < N; ++n)
    for (std::int64_t o = 0; o < O; ++o) {
      float sum = 0;  // whole numbers below 2^24: exact in any order
      for (std::int64_t i = 0; i < I; ++i) sum += x.as<float>()[n * I + i] * w.as<float>()[o * I + i];
      right = right && y.as<float>()[n * O + o] == sum;
    }
  const std::string name = build["blas"]["library"].get<std::string>();
  if (right) return {Level::good, "BLAS", fmt::format("{} multiplies rightly", name), ""};
  return {Level::broken, "BLAS", fmt::format("{} gives wrong products", name),
          "apt-get install --reinstall libopenblas-openmp-dev, then build again"};
}

Finding check_hdf5(const Json& build) {
  const std::string built = build["hdf5_built"].get<std::string>(), loaded = build["hdf5"].get<std::string>();
  // HDF5 ends the process itself when header and library differ in more than the release.
  if (built == loaded || built.empty()) return {Level::good, "HDF5", loaded, ""};
  return {Level::missing, "HDF5", fmt::format("{} is loaded, the build was made with {}", loaded, built),
          "build again, or let the loader find the other library (LD_LIBRARY_PATH)"};
}

Finding check_processor(const Json& machine) {
  const std::string isa = flash_cpu::kernels().name;
  const bool unused = machine["avx512"].get<bool>() && isa != "avx512";
  return {Level::good, "processor", fmt::format("attention kernels run with {}", isa),
          unused ? "unset SFA_CPU_ISA to use AVX-512" : ""};
}

Finding check_threads(const Json& machine) {
  const int cores = machine["cores"].get<int>(), threads = machine["openmp_threads"].get<int>();
  const std::string detail =
      fmt::format("{} OpenMP thread{} on {} core{}", threads, threads == 1 ? "" : "s", cores, cores == 1 ? "" : "s");
  if (threads == cores) return {Level::good, "threads", detail, ""};
  return {Level::missing, "threads", detail, fmt::format("OMP_NUM_THREADS={} uses each core once", cores)};
}

Finding check_gpu(const Json& machine, const Config* config) {
  const Json& cards = machine["cards"];
  const bool wanted = config != nullptr && config->device == "cuda";
  const Level level = wanted ? Level::broken : Level::missing;
  std::string why;
  if (cuda_available(&why)) {
    const Json& first = cards.at(0);
    return {Level::good, "GPU",
            fmt::format("{}{}, compute capability {}", cards.size() > 1 ? std::to_string(cards.size()) + " x " : "",
                        first["name"].get<std::string>(), first["compute_capability"].get<std::string>()),
            ""};
  }
  if (cards.empty() && machine["nvidia_driver"].is_null())
    return {wanted ? Level::broken : Level::good, "GPU", "there is none, so runs are on the CPU",
            wanted ? "device=cpu runs here; a card needs the NVIDIA driver (apt-get install nvidia-driver)" : ""};
  if constexpr (!kHasCuda)
    return {level, "GPU", "a driver is there, but " + why,
            "install the CUDA toolkit 12.4 or newer, then: cmake --preset cuda && ninja -C build/cuda"};
  return {level, "GPU", why, "nvidia-smi shows what the driver sees; a newer driver runs every older toolkit"};
}

// The nearest folder above a path that exists.
fs::path existing(fs::path path) {
  std::error_code error;
  path = fs::absolute(path, error);
  while (!fs::exists(path, error) && path.has_relative_path()) path = path.parent_path();
  return path;
}

Finding check_disk(const fs::path& output, std::size_t checkpoint_bytes) {
  const fs::path folder = existing(output);
  if (::access(folder.c_str(), W_OK) != 0)
    return {Level::broken, "disk", fmt::format("{} can't be written: {}", folder.string(), std::strerror(errno)),
            "name another output_dir, or: chmod u+w " + folder.string()};
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error) return {Level::missing, "disk", fmt::format("{}: {}", folder.string(), error.message()), ""};
  const std::string detail =
      fmt::format("{} free for {}", bytes_text(static_cast<double>(space.available)), output.string());
  if (checkpoint_bytes == 0 || space.available > checkpoint_bytes) return {Level::good, "disk", detail, ""};
  return {
      Level::broken, "disk",
      fmt::format("{}; a run keeps {} of checkpoints there", detail, bytes_text(static_cast<double>(checkpoint_bytes))),
      "free space, or: checkpoint.keep_last=1"};
}

// Whether the run fits, as it would find out by itself; `checkpoint_bytes` becomes what its newest checkpoints take.
Finding check_run(Config config, std::size_t& checkpoint_bytes) {
  try {
    take_vocabulary(config);
    std::string why;
    const bool gpu = config.device == "cuda" || (config.device == "auto" && cuda_available(&why));
    const Device device = gpu ? Device::cuda : Device::cpu;
    if (gpu && !cuda_available(&why))
      return {Level::broken, "run", "device: cuda was asked for, but " + why, "device=cpu"};
    const TrainingMemory memory(config, device);
    // Weights and moments in fp32, for those that are kept and the one being written.
    const auto kept = static_cast<std::size_t>(std::max<std::int64_t>(1, config.checkpoint.keep_last) + 1);
    checkpoint_bytes = kept * 3 * static_cast<std::size_t>(memory.buffers.master.bytes());
    if (gpu) Context(Device::cuda).synchronize();
    require_memory(config, memory, {});
    return {Level::good, "run", fmt::format("fits on {}: {}", name_of(device), describe(memory.parts())), ""};
  } catch (const Error& error) {
    return {Level::broken, "run", error.what(), "sfa plan shows memory by part"};
  }
}

constexpr const char* name_of_level(Level level) {
  return level == Level::good ? "ok" : level == Level::missing ? "note" : "BROKEN";
}

std::string text_of(const Json& value) {
  return value.is_null() ? "none" : value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace

bool Diagnosis::healthy() const {
  return std::none_of(findings.begin(), findings.end(), [](const Finding& f) { return f.level == Level::broken; });
}

Diagnosis diagnose(const Config* config) {
  Diagnosis d{describe_build(), describe_machine(), {}};
  d.findings = {check_blas(d.build), check_hdf5(d.build), check_processor(d.machine), check_threads(d.machine),
                check_gpu(d.machine, config)};
  std::size_t checkpoint_bytes = 0;
  if (config != nullptr) d.findings.push_back(check_run(*config, checkpoint_bytes));
  d.findings.push_back(check_disk(config != nullptr ? fs::path(config->output_dir) : fs::path("."), checkpoint_bytes));
  return d;
}

std::string diagnosis_text(const Diagnosis& d) {
  const Json &b = d.build, &m = d.machine;
  std::string out;
  const auto row = [&](const char* name, const std::string& value) { out += fmt::format("  {:<14}{}\n", name, value); };
  const auto bytes = [](const Json& value) { return bytes_text(value.get<double>()); };
  out += "this build\n";
  row("version", text_of(b["version"]));
  row("git revision", text_of(b["git_revision"]) + (b["git_dirty"].get<bool>() ? ", with local changes" : ""));
  row("compiler", text_of(b["compiler"]) + ", " + text_of(b["build_type"]));
  row("CUDA", b["cuda_toolkit"].is_null()
                  ? "not built in (cmake --preset cuda, where nvcc is)"
                  : fmt::format("{}, for {}", text_of(b["cuda_toolkit"]), text_of(b["cuda_architectures"])));
  row("MPI", b["mpi"].get<bool>() ? "built in: several ranks on CPUs (mpirun)"
                                  : "not built in; ranks on CPUs need it (libopenmpi-dev)");
  row("NCCL", b["nccl"].get<bool>() ? "built in: several GPUs, where libnccl.so.2 is"
                                    : "not built in; several GPUs need it (nccl.h, with CUDA)");
  row("HDF5", text_of(b["hdf5"]));
  row("BLAS",
      text_of(b["blas"]["library"]) + (b["blas"]["config"].is_null() ? "" : ": " + text_of(b["blas"]["config"])));
  out += "this machine\n";
  row("host", text_of(m["host"]));
  row("system", text_of(m["system"]));
  row("processor", fmt::format("{}, {} cores{}", text_of(m["cpu"]), m["cores"].get<int>(),
                               m["avx512"].get<bool>() ? ", AVX-512" : ", AVX2"));
  row("memory", fmt::format("{}, {} free", bytes(m["memory_bytes"]), bytes(m["memory_free_bytes"])));
  row("driver", m["nvidia_driver"].is_null() && m["cuda_driver"].is_null()
                    ? "none"
                    : fmt::format("NVIDIA {}, CUDA up to {}", text_of(m["nvidia_driver"]), text_of(m["cuda_driver"])));
  for (const Json& card : m["cards"])
    row("card", text_of(card["name"]) + (card.contains("memory_bytes") ? ", " + bytes(card["memory_bytes"]) : ""));
  out += "what follows from it\n";
  for (const Finding& f : d.findings) {
    row(name_of_level(f.level), fmt::format("{}: {}", f.what, f.detail));
    if (!f.remedy.empty()) row("", "-> " + f.remedy);
  }
  return out;
}

Json diagnosis_json(const Diagnosis& d) {
  Json findings = Json::array();
  for (const Finding& f : d.findings)
    findings.push_back(
        {{"level", name_of_level(f.level)}, {"what", f.what}, {"detail", f.detail}, {"remedy", f.remedy}});
  return {{"healthy", d.healthy()}, {"build", d.build}, {"machine", d.machine}, {"findings", findings}};
}

}  // namespace sfa
