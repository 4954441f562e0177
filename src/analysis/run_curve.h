// The course of a run, from its metrics.jsonl.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace sfa {

struct CurvePoint {
  std::int64_t step = 0;
  double seconds = 0;  // optimizer steps alone, as RunRecords::train_seconds
  std::optional<double> train_loss, val_loss, tokens_per_sec;
};

/// Lines in their order; a torn last line is left out. Throws Error when the file can't be read.
std::vector<CurvePoint> read_curve(const std::filesystem::path& folder);

}  // namespace sfa
