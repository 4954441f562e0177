#include "analysis/run_curve.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/metrics.h"

namespace sfa {

std::vector<CurvePoint> read_curve(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "metrics.jsonl";
  std::ifstream in(file);
  require(in.good(), "{}: can't be read", file.string());
  std::vector<CurvePoint> curve;
  double seconds = 0;
  std::int64_t timed_step = 0, newest = 0;
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
    const auto step = line.find('\0') == std::string::npos ? metrics_step(object) : std::nullopt;
    if (!step) continue;
    const auto number = [&](const char* key) -> std::optional<double> {
      const auto it = object.find(key);
      if (it == object.end() || !it->is_number()) return std::nullopt;
      return it->get<double>();
    };
    newest = std::max(newest, *step);
    if (const auto step_ms = number("step_ms")) {
      seconds += *step_ms * static_cast<double>(newest - timed_step) / 1000.0;
      timed_step = newest;
    }
    curve.push_back({*step, seconds, number("train/loss"), number("val/loss"), number("tokens_per_sec")});
  }
  return curve;
}

}  // namespace sfa
