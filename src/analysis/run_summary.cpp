#include "analysis/run_summary.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace sfa {
namespace {
namespace fs = std::filesystem;

// Lines are in the order of their steps; a torn last one, of a run that is being written or was killed, is left out.
void read_metrics(const fs::path& file, RunSummary& run) {
  std::ifstream in(file);
  require(in.good(), "{}: can't be read; a run folder holds config.yaml and metrics.jsonl", file.string());
  std::int64_t timed_step = 0;
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
    if (!object.is_object() || !object.contains("step") || !object["step"].is_number_integer()) {
      require(in.peek() == EOF, "{}: '{}' is not a line of metrics", file.string(), line.substr(0, 60));
      continue;
    }
    const auto number = [&](const char* key) -> std::optional<double> {
      const auto it = object.find(key);
      if (it == object.end() || !it->is_number()) return std::nullopt;
      return it->get<double>();
    };
    run.step = std::max(run.step, object["step"].get<std::int64_t>());
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

ModelCost model_cost(const Config& config, std::int64_t T, DType dtype) {
  ModelConfig model = config.model;
  model.attention.impl = "auto";  // what the mathematics needs is the same for all
  return make_model(model, Device::cpu, dtype)->cost(T);
}

RunSummary read_run(const fs::path& folder) {
  require(fs::is_directory(folder), "{}: is no run folder", folder.string());
  RunSummary run;
  run.folder = folder;
  run.config = load_config((folder / "config.yaml").string(), {});
  if (std::ifstream in(folder / "run.json"); in.good()) {
    const nlohmann::json about = nlohmann::json::parse(in, nullptr, false);
    require(about.is_object(), "{}: is not JSON", (folder / "run.json").string());
    run.device = about.value("device", "");
    run.dtype = about.value("dtype", "");
  }
  read_metrics(folder / "metrics.jsonl", run);
  const DataConfig& d = run.config.data;
  run.tokens = run.step * d.batch_size * d.seq_len;
  run.cost = model_cost(run.config, d.seq_len, run.dtype == "bf16" ? DType::bf16 : DType::f32);
  return run;
}

}  // namespace sfa
