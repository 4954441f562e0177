// What a run folder tells of its run, from the files that training wrote: config.yaml, run.json and metrics.jsonl.
#pragma once

#include <cstdint>
#include <filesystem>

#include "analysis/run_records.h"
#include "config/config.h"
#include "models/model.h"

namespace sfa {

struct RunSummary : RunRecords {
  std::filesystem::path folder;
  Config config;            // resolved, as the run used it
  std::int64_t tokens = 0;  // trained on up to the newest step with metrics
  ModelCost cost;           // at config.data.seq_len
};

/// Reads a run folder. Throws Error with one sentence when it is none, or its metrics are unreadable.
RunSummary read_run(const std::filesystem::path& folder);

/// FLOPs, parameters and cache bytes of the model that `config` describes, at a length of T tokens, values being kept
/// in `dtype`. Needs no memory and no device; model.vocab_size must be set.
ModelCost model_cost(const Config& config, std::int64_t T, DType dtype);

}  // namespace sfa
