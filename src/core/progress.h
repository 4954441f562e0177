// Progress of a long job on standard error: a bar with the remaining time on a terminal, a plain line every few seconds
// elsewhere (logs, pipes).
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace sfa {

class Progress {
 public:
  /// `total` in any unit; 0 when unknown (no percentage and no remaining time then).
  Progress(std::string label, std::uint64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Cheap enough to call often: prints at most ten times a second on a terminal and every ten seconds elsewhere.
  /// `detail` is shown after the bar.
  void update(std::uint64_t done, const std::string& detail);
  /// Clears the bar, so that what is printed next stands on a line of its own.
  void finish();
  [[nodiscard]] double seconds() const;

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  std::uint64_t total_;
  bool terminal_, shown_ = false;
  Clock::time_point begin_, last_;
};

/// "4.2 s", "3 min 5 s", "2 h 10 min".
std::string duration_text(double seconds);
/// "512 B", "1.5 KB", "46.7 MB": powers of 1000.
std::string bytes_text(double bytes);
/// 1115394 -> "1,115,394".
std::string grouped(std::int64_t value);

}  // namespace sfa
