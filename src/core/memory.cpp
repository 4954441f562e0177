#include "core/memory.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>

#include "core/build_config.h"
#include "core/device_cuda.h"
#include "core/error.h"

namespace sfa {
namespace {
namespace fs = std::filesystem;

std::optional<std::size_t> number_in(const fs::path& file) {
  std::ifstream in(file);
  std::size_t value = 0;
  if (in >> value) return value;
  return std::nullopt;  // not there, or "max"
}

// The value behind "name" in a file of lines "name value [unit]".
std::size_t field_of(const fs::path& file, const std::string& name) {
  std::ifstream in(file);
  for (std::string key, rest; in >> key && std::getline(in, rest);)
    if (key == name) return static_cast<std::size_t>(std::strtoull(rest.c_str(), nullptr, 10));
  return 0;
}

// Files of one control group: its limit, what it uses, and of that what the kernel can drop.
struct GroupFiles {
  const char *limit, *usage, *droppable;
};
constexpr GroupFiles kSecondVersion{"memory.max", "memory.current", "inactive_file"};
constexpr GroupFiles kFirstVersion{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};

void narrow(const fs::path& group, const GroupFiles& files, MemoryThere& there) {
  const std::optional<std::size_t> limit = number_in(group / files.limit), usage = number_in(group / files.usage);
  if (!limit || !usage || *limit >= there.total) return;
  const std::size_t used = *usage - std::min(*usage, field_of(group / "memory.stat", files.droppable));
  there.total = *limit;
  there.free = std::min(there.free, *limit - std::min(*limit, used));
}

}  // namespace

MemoryThere host_memory(const std::string& root) {
  constexpr std::size_t kKilobyte = 1024;
  const fs::path proc = root + "/proc", groups = root + "/sys/fs/cgroup";
  MemoryThere there{field_of(proc / "meminfo", "MemAvailable:") * kKilobyte,
                    field_of(proc / "meminfo", "MemTotal:") * kKilobyte};
  // Lines "number:controllers:path": one without controllers is version 2's. A limit may stand at any level; inside a
  // container the path can be one of the host, and the group's files lie at the top.
  std::ifstream in(proc / "self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool second_version = controllers == ",,";
    if (!second_version && controllers.find(",memory,") == std::string::npos) continue;
    const fs::path top = second_version ? groups : groups / "memory";
    const GroupFiles& files = second_version ? kSecondVersion : kFirstVersion;
    for (fs::path level = fs::path(line.substr(second + 1)).relative_path(); !level.empty();
         level = level.parent_path())
      narrow(top / level, files, there);
    narrow(top, files, there);
  }
  return there;
}

MemoryThere memory_of(Device device) {
  if constexpr (kHasCuda) {
    if (device == Device::cuda) {
      const auto [free, total] = cuda_ops::memory_free_total();
      return {free, total};
    }
  }
  require(device == Device::cpu, "this build has no CUDA backend");
  return host_memory();
}

std::size_t parse_bytes(const std::string& text, const std::string& what) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string unit(end, text.data() + text.size());
  std::erase(unit, ' ');
  constexpr std::pair<const char*, double> kUnits[] = {
      {"", 1},      {"B", 1},       {"KB", 1e3},       {"MB", 1e6},         {"GB", 1e9},
      {"TB", 1e12}, {"KiB", 1024.}, {"MiB", 1048576.}, {"GiB", 1073741824}, {"TiB", 1099511627776.},
      {"K", 1e3},   {"M", 1e6},     {"G", 1e9},        {"T", 1e12},
  };
  for (const auto& [name, factor] : kUnits) {
    const double bytes = value * factor;
    if (error == std::errc{} && unit == name && bytes > 0 && bytes < 1e18) return static_cast<std::size_t>(bytes);
  }
  throw UsageError(fmt::format("{}: a size like 141GB, 80GiB or 512MB is expected, got '{}'", what, text));
}

}  // namespace sfa
