// libFuzzer target: the reader of checkpoints. Built and run by scripts/fuzz.sh.
// sources: src/checkpoint/manifest.cpp src/core/file.cpp src/checkpoint/reader.cpp src/core/dtype.cpp
// libraries: -lfmt -lxxhash
//
// The input is taken as manifest.json twice: as it is, and as what follows the first line, signed as the writer signs
// it, so that changes get past the checksum. Beside it lies a data file of zeros, and whatever the reader accepts is
// read: every tensor whole and in part. Only Error may come out.
#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "core/error.h"

namespace {
namespace fs = std::filesystem;

constexpr std::int64_t kDataBytes = 8192;

// A folder with the data file, for the life of the process; in memory where that is possible.
const fs::path& folder() {
  static const fs::path path = [] {
    std::string name = (fs::exists("/dev/shm") ? "/dev/shm" : fs::temp_directory_path().string()) + "/sfa-fuzz-XXXXXX";
    fs::path made = ::mkdtemp(name.data());
    std::ofstream(made / "rank_00000.h5", std::ios::binary) << std::string(kDataBytes, '\0');
    return made;
  }();
  static const bool registered = std::atexit([] { fs::remove_all(folder()); }) == 0;
  (void)registered;
  return path;
}

void read_everything(const std::string& manifest) {
  std::ofstream(folder() / "manifest.json", std::ios::binary | std::ios::trunc) << manifest;
  try {
    sfa::CheckpointReader reader(folder());
    for (const auto& [name, tensor] : reader.tensors()) {
      const std::int64_t n = tensor.numel();  // at most kDataBytes, or the reader has let something through
      if (n > kDataBytes) std::abort();
      std::vector<char> out(static_cast<std::size_t>(n) * sfa::size_of(tensor.dtype) + 1);
      try {
        reader.read(name, 0, n, out.data());
        reader.read(name, n / 3, n - n / 3, out.data());
      } catch (const sfa::Error&) {
      }
    }
    reader.verify();
  } catch (const sfa::Error&) {
  }
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    (void)sfa::checkpoint::parse_manifest(input, "input");
  } catch (const sfa::Error&) {
  }
  read_everything(fmt::format("{{\"format\":\"sfa-checkpoint\",\"version\":1,\"xxh3\":\"{:016x}\",\n{}",
                              XXH3_64bits(input.data(), input.size()), input));
  return 0;
}
