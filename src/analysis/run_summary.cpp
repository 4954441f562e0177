#include "analysis/run_summary.h"

#include "core/error.h"

namespace sfa {
namespace fs = std::filesystem;

ModelCost model_cost(const Config& config, std::int64_t T, DType dtype) {
  ModelConfig model = config.model;
  model.attention.impl = "auto";             // what the mathematics needs is the same for all
  if (model.attention.kv_cache == "int8") {  // no cache is planned here, so that every implementation will do
    model.attention.kv_cache = "full";
    model.attention.as_cached = "int8";
  }
  return make_model(model, Device::cpu, dtype)->cost(T);
}

RunSummary read_run(const fs::path& folder) {
  require(fs::is_directory(folder), "{}: is no run folder", folder.string());
  RunSummary run{read_run_records(folder), folder, {}, 0, {}};
  run.config = load_config((folder / "config.yaml").string(), {});
  const DataConfig& d = run.config.data;
  run.tokens = run.step * d.batch_size * d.seq_len;
  run.cost = model_cost(run.config, d.seq_len, run.dtype == "bf16" ? DType::bf16 : DType::f32);
  return run;
}

}  // namespace sfa
