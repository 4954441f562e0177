// Where the figures of a run go: metrics.jsonl, one object a line, and TensorBoard.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "train/event_file.h"

namespace sfa {

/// The step of one line of metrics.jsonl; nothing when the line is no object with a whole, possible number of steps.
std::optional<std::int64_t> metrics_step(const nlohmann::json& object);

/// Appends objects to a file of one JSON object a line; each line is written whole and flushed.
class MetricsFile {
 public:
  /// Lines with a step above `last_step`, or of a later rollback than number `rollbacks`, are dropped first (a resumed
  /// run writes them again), as is a torn last line.
  MetricsFile(std::filesystem::path file, std::int64_t last_step, std::int64_t rollbacks = 0);
  void write(const nlohmann::ordered_json& object);

 private:
  std::filesystem::path path_;
  std::ofstream out_;
};

/// What a run reports, in every format that was asked for: metrics.jsonl, and TensorBoard's event file.
class RunMetrics {
 public:
  /// What the folder's files hold after `last_step`, or of later rollbacks, is dropped.
  RunMetrics(const std::filesystem::path& folder, std::int64_t last_step, bool tensorboard, std::int64_t rollbacks = 0);
  /// {"step": n, name: number, ...}
  void write(const nlohmann::ordered_json& object);

 private:
  MetricsFile lines_;
  std::optional<EventFile> events_;
};

}  // namespace sfa
