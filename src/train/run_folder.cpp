#include "train/run_folder.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "checkpoint/checkpoint.h"
#include "core/environment.h"
#include "core/file.h"
#include "core/log.h"
#include "tokenizer/tokenizer.h"

namespace sfa {
namespace fs = std::filesystem;

ConfigDifference first_difference(const Config& before, const Config& now) {
  std::istringstream old_lines(dump_config(before)), new_lines(dump_config(now));
  const auto trimmed = [](const std::string& line) {
    return line.substr(std::min(line.size(), line.find_first_not_of(' ')));
  };
  for (std::string a, b; std::getline(old_lines, a) && std::getline(new_lines, b);)
    if (a != b) return {trimmed(a), trimmed(b)};
  return {};
}

namespace {

// Without what changes no weight but by the order of sums: where the run lies and runs, on how many ranks, how often it
// reports, and its checkpoints. (What is kept of a run has the micro-batch of its ranks.)
Config deciding_results(Config config) {
  const Config standard;
  config.output_dir = "-";
  config.device = standard.device;
  config.resume = standard.resume;
  config.checkpoint = standard.checkpoint;
  config.dist = standard.dist;
  config.data.micro_batch_size = standard.data.micro_batch_size;
  config.train.eval_every = standard.train.eval_every;
  config.train.log_every = standard.train.log_every;
  config.train.tensorboard = standard.train.tensorboard;
  return config;
}

// Nothing of a run without a checkpoint can be continued: only the very same run may take its folder over.
void require_same_beginning(const fs::path& saved, const Config& config) {
  const auto [before, now] =
      first_difference(deciding_results(load_config(saved.string(), {})), deciding_results(config));
  require(before.empty(),
          "{}: a run that has no checkpoint yet was begun here with '{}', this configuration has '{}'; use its values, "
          "name another output_dir, or remove the folder",
          saved.string(), before, now);
}

}  // namespace

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
    if (any_checkpoint)
      folder.checkpoint = find_checkpoint(folder.path);
    else
      require_same_beginning(folder.path / "config.yaml", config);
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
  write_whole_file((folder.path / "config.yaml").string(), dump_config(config), true);
  nlohmann::ordered_json run;
  run["device"] = device_name;
  run["dtype"] = dtype;
  run["build"] = describe_build();
  run["machine"] = describe_machine();
  run["started_unix"] =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  write_whole_file((folder.path / "run.json").string(), run.dump(2) + "\n", true);
}

void keep_tokenizer(const RunFolder& folder, const ShardSet& shards) {
  const fs::path kept = folder.path / "tokenizer";
  if (shards.tokenizer_name() == "bytes" || fs::exists(kept)) return;
  std::unique_ptr<Tokenizer> tokenizer;
  try {
    tokenizer =
        find_tokenizer(shards.tokenizer_hash(), shards.tokenizer_places(), "`sfa generate` will need --tokenizer");
  } catch (const Error& error) {
    spdlog::warn("{}", error.what());
    return;
  }
  // Under another name until all files are there.
  const fs::path unfinished = folder.path / "tokenizer.tmp";
  fs::create_directories(unfinished);
  for (const fs::path file : tokenizer_files(tokenizer->name()))
    fs::copy_file(file, unfinished / file.filename(), fs::copy_options::overwrite_existing);
  fs::rename(unfinished, kept);
}

}  // namespace sfa
