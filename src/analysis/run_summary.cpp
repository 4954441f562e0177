#include "analysis/run_summary.h"

#include "attention/sfa/sfa.h"
#include "core/error.h"

namespace sfa {
namespace fs = std::filesystem;

ModelCost model_cost(const Config& config, std::int64_t T, DType dtype) {
  ModelConfig model = config.model;
  model.attention.impl = "auto";  // what the mathematics needs is the same for all
  // Values of 8 bits are a GPU's alone, but their bytes can be counted anywhere.
  model.attention.kv_cache_v = "full";
  ModelCost cost = make_model(model, Device::cpu, dtype)->cost(T);
  if (config.model.attention.kv_cache_v == "full") return cost;
  cost.kv_bytes_per_token = 0;
  for (std::int64_t l = 0; l < model.num_hidden_layers; ++l)
    cost.kv_bytes_per_token += sfa_cache_bytes(config.model.attention_of(l), model.attention_dims(), dtype);
  return cost;
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
