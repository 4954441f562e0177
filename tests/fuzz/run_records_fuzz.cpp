// libFuzzer target, built and run by scripts/fuzz.sh.
// sources: src/analysis/run_records.cpp src/train/metrics.cpp src/train/event_file.cpp
// libraries: -lfmt
//
// The JSON that a run leaves behind: metrics.jsonl, with run.json as its first line. Any bytes either read or end in
// one Error, and a resumed run's cut of its metrics can be read again.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "analysis/run_records.h"
#include "core/error.h"
#include "fuzz/fuzz.h"
#include "train/metrics.h"

namespace {
namespace fs = std::filesystem;

// A folder for the life of the process; in memory where that is possible.
const fs::path& folder() {
  static const fs::path path = [] {
    std::string name = (fs::exists("/dev/shm") ? "/dev/shm" : fs::temp_directory_path().string()) + "/sfa-fuzz-XXXXXX";
    return fs::path(::mkdtemp(name.data()));
  }();
  static const bool registered = std::atexit([] { fs::remove_all(folder()); }) == 0;
  (void)registered;
  return path;
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t cut = std::min(input.find('\n'), input.size());
  std::ofstream(folder() / "run.json", std::ios::binary) << input.substr(0, cut);
  std::ofstream(folder() / "metrics.jsonl", std::ios::binary) << input.substr(std::min(cut + 1, size));
  try {
    (void)sfa::read_run_records(folder());
  } catch (const sfa::Error&) {
  }
  constexpr std::int64_t kLast = 20;
  sfa::MetricsFile(folder() / "metrics.jsonl", kLast).write({{"step", kLast + 1}});
  fs::remove(folder() / "run.json");
  try {
    sfa::fuzz::must(sfa::read_run_records(folder()).step == kLast + 1, "what a resumed run writes is its newest step");
  } catch (const sfa::Error&) {
    sfa::fuzz::must(false, "a resumed run's metrics can be read");
  }
  return 0;
}
