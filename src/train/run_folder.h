// The folder of a run: config.yaml, run.json, metrics.jsonl, train.log, and a folder a checkpoint.
#pragma once

#include <filesystem>
#include <string>

#include "config/config.h"

namespace sfa {

struct RunFolder {
  std::filesystem::path path;
  std::filesystem::path checkpoint;  // to resume from; empty = start anew
};

/// Creates the folder, or finds what to resume. Throws Error when it holds another run (and resume is `never`), can't
/// be written, or belongs to a run of another shape of model. Nothing of an earlier run is changed by a refusal.
RunFolder open_run_folder(const Config& config);

/// Writes config.yaml and run.json (version, device, dtype, time) whole or not at all.
void describe_run(const RunFolder& folder, const Config& config, const std::string& device_name,
                  const std::string& dtype);

/// Writes a small file under a temporary name, syncs and renames it.
void write_file_atomically(const std::filesystem::path& file, const std::string& text);

}  // namespace sfa
