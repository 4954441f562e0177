#include "train/metrics.h"

#include <vector>

#include "core/error.h"
#include "core/file.h"

namespace sfa {

std::optional<std::int64_t> metrics_step(const nlohmann::json& object) {
  if (!object.is_object()) return std::nullopt;
  const auto it = object.find("step");
  constexpr std::int64_t kMost = std::int64_t{1} << 48;  // more steps than a run can have; keeps products in range
  if (it == object.end() || !it->is_number_integer()) return std::nullopt;
  if (it->is_number_unsigned() && it->get<std::uint64_t>() > static_cast<std::uint64_t>(kMost)) return std::nullopt;
  const auto step = it->get<std::int64_t>();
  if (step < 0 || step > kMost) return std::nullopt;
  return step;
}

namespace {

bool of_later_rollback(const nlohmann::json& object, std::int64_t rollbacks) {
  const auto it = object.find("rollback");
  return it != object.end() && it->is_number() && it->get<double>() > static_cast<double>(rollbacks);
}

}  // namespace

MetricsFile::MetricsFile(std::filesystem::path file, std::int64_t last_step, std::int64_t rollbacks)
    : path_(std::move(file)) {
  std::vector<std::string> kept;
  bool dropped = false;
  {
    std::ifstream in(path_);
    for (std::string line; std::getline(in, line);) {
      const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
      const auto step = metrics_step(object);
      // The parser takes a NUL for the end of its text.
      const bool whole = line.find('\0') == std::string::npos;
      if (whole && step && *step <= last_step && !of_later_rollback(object, rollbacks))
        kept.push_back(line);
      else
        dropped = true;
      if (in.eof()) dropped = true;  // no line end: what is appended would become part of it
    }
  }
  if (dropped) {
    std::string text;
    for (const std::string& line : kept) text += line + '\n';
    write_whole_file(path_.string(), text, true);
  }
  out_.open(path_, std::ios::app);
  require(out_.good(), "{}: can't be opened for writing", path_.string());
}

void MetricsFile::write(const nlohmann::ordered_json& object) {
  out_ << object.dump() << '\n' << std::flush;
  require(out_.good(), "{}: can't be written; is the disk full?", path_.string());
}

RunMetrics::RunMetrics(const std::filesystem::path& folder, std::int64_t last_step, bool tensorboard,
                       std::int64_t rollbacks)
    : lines_(folder / "metrics.jsonl", last_step, rollbacks) {
  if (tensorboard) events_.emplace(folder, last_step);
}

void RunMetrics::write(const nlohmann::ordered_json& object) {
  lines_.write(object);
  if (events_) events_->write(object);
}

}  // namespace sfa
