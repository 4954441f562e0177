// Runs beside each other.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "analysis/run_summary.h"

namespace sfa {

/// "dense", "sfa k=8", "sfa k=8 2of4, window 64": what sets a run's attention apart.
std::string attention_label(const ModelConfig& model);

/// A plain-text table, a line a run, then a line for each further run with its differences from the first.
std::string compare_table(const std::vector<RunSummary>& runs);

/// The same figures, unrounded, as a JSON array of one object a run.
nlohmann::ordered_json compare_json(const std::vector<RunSummary>& runs);

}  // namespace sfa
