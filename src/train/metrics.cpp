#include "train/metrics.h"

#include <unistd.h>

#include <cstdio>
#include <vector>

#include "core/error.h"

namespace sfa {

MetricsFile::MetricsFile(std::filesystem::path file, std::int64_t last_step) : path_(std::move(file)) {
  std::vector<std::string> kept;
  bool dropped = false;
  {
    std::ifstream in(path_);
    for (std::string line; std::getline(in, line);) {
      const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
      const bool keep = object.is_object() && object.contains("step") && object["step"].is_number() && object["step"].get<std::int64_t>() <= last_step;
      if (keep)
        kept.push_back(line);
      else
        dropped = true;
    }
  }
  if (dropped) {
    const std::filesystem::path temporary = path_.string() + ".tmp";
    {
      std::ofstream rewritten(temporary, std::ios::trunc);
      for (const std::string& line : kept) rewritten << line << '\n';
      require(rewritten.flush().good(), "{}: can't be written", temporary.string());
    }
    std::filesystem::rename(temporary, path_);
  }
  out_.open(path_, std::ios::app);
  require(out_.good(), "{}: can't be opened for writing", path_.string());
}

void MetricsFile::write(const nlohmann::ordered_json& object) {
  out_ << object.dump() << '\n' << std::flush;
  require(out_.good(), "{}: can't be written; is the disk full?", path_.string());
}

Progress::Progress(std::int64_t first_step, std::int64_t last_step)
    : first_(first_step), last_(last_step), terminal_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() { clear(); }

void Progress::show(std::int64_t step, const std::string& text) {
  const auto now = Clock::now();
  if (!terminal_ || now - drawn_ < std::chrono::milliseconds(100)) return;
  drawn_ = now;
  const double done = static_cast<double>(step - first_), total = static_cast<double>(last_ - first_);
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  constexpr int kWidth = 30;
  const int filled = total > 0 ? static_cast<int>(kWidth * done / total) : kWidth;
  std::string bar(static_cast<std::size_t>(filled), '#');
  bar.resize(kWidth, '.');
  const std::string left = done > 0 ? readable_time(elapsed / done * (total - done)) + " left" : "";
  fmt::print(stderr, "\r\x1b[K[{}] {}/{}  {}  {}", bar, step, last_, text, left);
  std::fflush(stderr);
  shown_ = true;
}

void Progress::clear() {
  if (!shown_) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
  shown_ = false;
}

std::string readable_time(double seconds) {
  const auto s = static_cast<std::int64_t>(seconds + 0.5);
  if (s >= 3600) return fmt::format("{} h {:02} min", s / 3600, s % 3600 / 60);
  if (s >= 60) return fmt::format("{} min {:02} s", s / 60, s % 60);
  return fmt::format("{} s", s);
}

}  // namespace sfa
