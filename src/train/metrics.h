// Where the figures of a run go: metrics.jsonl (one object a line), and lines or a progress bar for the person watching.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace sfa {

/// Appends objects to a file of one JSON object a line; each line is written whole and flushed.
class MetricsFile {
 public:
  /// Lines with a step above `last_step` are dropped first (a resumed run writes them again), as is a torn last line.
  MetricsFile(std::filesystem::path file, std::int64_t last_step);
  void write(const nlohmann::ordered_json& object);

 private:
  std::filesystem::path path_;
  std::ofstream out_;
};

/// A bar with the time left on a terminal; silent elsewhere, where the lines of the log speak.
class Progress {
 public:
  Progress(std::int64_t first_step, std::int64_t last_step);
  ~Progress();
  void show(std::int64_t step, const std::string& text);
  /// Clears the bar so that a log line can stand in its place.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  std::int64_t first_, last_;
  bool terminal_, shown_ = false;
  Clock::time_point start_ = Clock::now(), drawn_{};
};

/// "1 h 02 min", "3 min 20 s", "12 s".
std::string readable_time(double seconds);

}  // namespace sfa
