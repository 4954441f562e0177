#include "train/run_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "core/build_config.h"

namespace sfa {
namespace fs = std::filesystem;

void write_file_atomically(const fs::path& file, const std::string& text) {
  const fs::path temporary = file.string() + ".tmp";
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  require(fd >= 0, "{}: can't be written: {}", temporary.string(), std::strerror(errno));
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      ::close(fd);
      fail("{}: can't be written: {}", temporary.string(), std::strerror(error));
    }
    done += static_cast<std::size_t>(n);
  }
  const bool synced = ::fsync(fd) == 0;
  const bool closed = ::close(fd) == 0;
  require(synced && closed, "{}: can't be written: {}", temporary.string(), std::strerror(errno));
  fs::rename(temporary, file);
}

RunFolder find_run_folder(const Config& config) {
  RunFolder folder{config.output_dir, {}};
  std::error_code error;
  const fs::file_status status = fs::status(folder.path, error);
  require(status.type() != fs::file_type::not_found || !fs::is_symlink(folder.path), "{}: leads nowhere",
          folder.path.string());
  if (!fs::exists(status)) return folder;
  require(fs::is_directory(status), "{}: the run's folder can't be made: a file is in the way", folder.path.string());
  const bool any_checkpoint = !list_checkpoints(folder.path).empty();
  if (any_checkpoint || fs::exists(folder.path / "config.yaml", error)) {
    require(config.resume == "auto",
            "{}: the folder holds a run already; continue it with --resume, or name another output_dir",
            folder.path.string());
    if (any_checkpoint) folder.checkpoint = find_checkpoint(folder.path);
  }
  const int denied = ::access(folder.path.c_str(), W_OK) == 0 ? 0 : errno;
  require(denied == 0, "{}: the run's folder can't be written: {}", folder.path.string(), std::strerror(denied));
  return folder;
}

void create_run_folder(const RunFolder& folder) {
  std::error_code error;
  fs::create_directories(folder.path, error);
  require(!error, "{}: the run's folder can't be made: {}", folder.path.string(), error.message());
}

void describe_run(const RunFolder& folder, const Config& config, const std::string& device_name,
                  const std::string& dtype) {
  write_file_atomically(folder.path / "config.yaml", dump_config(config));
  char host[256] = "unknown";
  ::gethostname(host, sizeof host - 1);
  nlohmann::ordered_json run;
  run["sfa_version"] = kVersion;
  run["compiler"] = kCompiler;
  run["build_type"] = kBuildType;
  run["host"] = host;
  run["device"] = device_name;
  run["dtype"] = dtype;
  run["started_unix"] =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  write_file_atomically(folder.path / "run.json", run.dump(2) + "\n");
}

}  // namespace sfa
