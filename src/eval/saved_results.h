// Results of evaluations, kept in the run's folder for `sfa compare --html`: RUN/eval/NAME.json.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace sfa {

/// Writes RUN/eval/NAME.json for the run that `checkpoint` (one of its checkpoint folders) belongs to, in one step,
/// over an older one. Throws Error when that is no run folder. Returns the path.
std::filesystem::path save_result(const std::filesystem::path& checkpoint, const std::string& name,
                                  const nlohmann::ordered_json& result);

/// Everything in RUN/eval by name; empty when there is none. Throws Error for a file that is not JSON.
std::map<std::string, nlohmann::json> saved_results(const std::filesystem::path& run);

}  // namespace sfa
