// Checkpoints in the background: the state is copied to host memory, and a thread writes the copy while training goes
// on.
//
//   void* memory = background.reserve(tensor, begin, count);   // for every tensor; the caller copies into it
//   background.start(step, state, config);                     // returns at once
//
// At most one checkpoint is being written: reserve() waits for the one before. The memory of the copy is kept and used
// again, so that nothing is allocated after the first checkpoint. A write that fails leaves the checkpoints that were
// there as they are, and its Error is thrown by the next reserve(), start() or wait().
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace sfa {

/// What prune_checkpoints() is called with after each checkpoint.
struct KeepRules {
  std::int64_t keep_last = 1;
  std::int64_t keep_every = 0;
};

/// The writers of one checkpoint, a process each. `gather` gives every writer's text to all of them, in order; all call
/// it equally often. The default is one writer.
struct WriterGroup {
  int rank = 0;
  std::function<std::vector<std::string>(const std::string& mine)> gather;
};
/// Writes the checkpoint of `step`: each rank its file, to which `fill` adds what it writes, and rank 0 publishes it
/// when all are there. Every writer returns the folder, or throws Error when one of them has failed; each takes its
/// part of the unfinished folder away then.
std::filesystem::path write_together(const WriterGroup& group, const std::filesystem::path& run_folder,
                                     std::int64_t step, const std::function<void(CheckpointWriter&)>& fill,
                                     const nlohmann::json& state, const std::string& config_yaml);
/// Rank 0 prunes, and all wait for it: the folder of a next checkpoint in which no file is locked yet would look like
/// one that a killed writer has left.
void prune_together(const WriterGroup& group, const std::filesystem::path& run_folder, const KeepRules& keep);

class BackgroundCheckpoint {
 public:
  /// Host memory for the copy: page-locked where a GPU copies into it. The default is ordinary memory.
  using Allocate = std::function<std::shared_ptr<void>(std::size_t bytes)>;

  BackgroundCheckpoint(std::filesystem::path run_folder, KeepRules keep, Allocate allocate = {},
                       WriterGroup group = {});
  /// Waits for the write in flight; an error of it that nobody has seen is logged.
  ~BackgroundCheckpoint();
  BackgroundCheckpoint(const BackgroundCheckpoint&) = delete;
  BackgroundCheckpoint& operator=(const BackgroundCheckpoint&) = delete;

  /// Memory for elements [begin, begin + count) of the tensor, to be filled before start(). Waits for the write in
  /// flight and throws its Error, if it has one. The first reserve() after start() begins a new copy.
  void* reserve(const CheckpointTensor& tensor, std::int64_t begin, std::int64_t count);
  /// Writes what was reserved as the checkpoint of `step`, on a thread; then prunes. Everything that CheckpointWriter
  /// refuses shows as an Error later, as a full disk does.
  void start(std::int64_t step, nlohmann::json state, std::string config_yaml);
  /// Waits until the write in flight is done and throws its Error; returns the newest checkpoint that this object has
  /// written, empty before the first.
  std::filesystem::path wait();
  /// True while a write is in flight; never blocks.
  [[nodiscard]] bool writing() const;
  /// Forgets what was reserved since the last start(), after a failure between reserve() and start().
  void discard();
  /// Host memory held for the copy.
  [[nodiscard]] std::size_t memory_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sfa
