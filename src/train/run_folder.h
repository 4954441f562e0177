// The folder of a run: config.yaml, run.json, metrics.jsonl, train.log, and a folder a checkpoint.
#pragma once

#include <filesystem>
#include <string>

#include "config/config.h"
#include "data/loader.h"

namespace sfa {

struct RunFolder {
  std::filesystem::path path;
  std::filesystem::path checkpoint;  // to resume from; empty = start anew
};

/// The first key whose value differs, as "key: before" and "key: now"; both empty when none does.
struct ConfigDifference {
  std::string before, now;
};
ConfigDifference first_difference(const Config& before, const Config& now);

/// Finds what to resume, and changes nothing. Throws Error when the folder holds another run (and resume is `never`),
/// when a run that never reached a checkpoint was begun there with a configuration of other results, or when the folder
/// can't be written.
RunFolder find_run_folder(const Config& config);

/// Creates the folder where it is missing. Throws Error when that is impossible.
void create_run_folder(const RunFolder& folder);

/// Writes config.yaml and run.json (device, dtype, build with git revision, machine, time) whole or not at all.
void describe_run(const RunFolder& folder, const Config& config, const std::string& device_name,
                  const std::string& dtype);

/// Copies the files of the training data's tokenizer to `tokenizer/` in the run's folder, where they are not there yet,
/// so that the run can be used wherever it is moved. Where they can't be found a line of the log says so.
void keep_tokenizer(const RunFolder& folder, const ShardSet& shards);

}  // namespace sfa
