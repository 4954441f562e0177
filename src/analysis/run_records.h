// The records that training leaves in a run folder beside its checkpoints: run.json (where it ran) and metrics.jsonl
// (one object a line: `step` and what was measured there).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace sfa {

struct RunRecords {
  std::string device, dtype;            // run.json; empty when it does not say
  std::int64_t step = 0;                // newest step with metrics
  std::optional<double> train_loss;     // newest, nats a token
  std::optional<double> val_loss;       // newest validation, nats a token
  std::optional<double> bits_per_byte;  // of the same validation
  double train_seconds = 0;             // optimizer steps alone: without start, validation and checkpoints
};

/// Throws Error with one sentence when a file is missing or damaged. The last line of metrics.jsonl may be torn (of a
/// run that is being written or was killed); it is left out.
RunRecords read_run_records(const std::filesystem::path& folder);

}  // namespace sfa
