#include "analysis/run_records.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/metrics.h"

namespace sfa {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

void read_about(const fs::path& file, RunRecords& run) {
  std::ifstream in(file);
  if (!in.good()) return;
  const json about = json::parse(in, nullptr, false);
  require(about.is_object(), "{}: is not JSON", file.string());
  for (const auto& [key, value] : {std::pair{"device", &run.device}, std::pair{"dtype", &run.dtype}}) {
    const auto it = about.find(key);
    if (it == about.end()) continue;
    require(it->is_string(), "{}: {} must be a string", file.string(), key);
    *value = it->get<std::string>();
  }
}

void read_metrics(const fs::path& file, RunRecords& run) {
  std::ifstream in(file);
  require(in.good(), "{}: can't be read; a run folder holds config.yaml and metrics.jsonl", file.string());
  std::int64_t timed_step = 0;
  for (std::string line; std::getline(in, line);) {
    const json object = json::parse(line, nullptr, false);
    const auto step = line.find('\0') == std::string::npos ? metrics_step(object) : std::nullopt;
    if (!step) {
      require(in.peek() == EOF, "{}: '{}' is not a line of metrics", file.string(), line.substr(0, 60));
      continue;
    }
    const auto number = [&](const char* key) -> std::optional<double> {
      const auto it = object.find(key);
      if (it == object.end() || !it->is_number()) return std::nullopt;
      return it->get<double>();
    };
    run.step = std::max(run.step, *step);
    if (const auto loss = number("train/loss")) run.train_loss = loss;
    if (const auto loss = number("val/loss")) {
      run.val_loss = loss;
      run.bits_per_byte = number("val/bits_per_byte");
    }
    if (const auto step_ms = number("step_ms")) {
      run.train_seconds += *step_ms * static_cast<double>(run.step - timed_step) / 1000.0;
      timed_step = run.step;
    }
  }
}

}  // namespace

RunRecords read_run_records(const fs::path& folder) {
  RunRecords run;
  read_about(folder / "run.json", run);
  read_metrics(folder / "metrics.jsonl", run);
  return run;
}

}  // namespace sfa
