#include "eval/saved_results.h"

#include <fstream>

#include "core/error.h"
#include "core/file.h"

namespace sfa {
namespace fs = std::filesystem;

fs::path save_result(const fs::path& checkpoint, const std::string& name, const nlohmann::ordered_json& result) {
  const fs::path run = fs::absolute(checkpoint).lexically_normal().parent_path();
  require(fs::exists(run / "metrics.jsonl"), "--save: {} belongs to no run folder (one with metrics.jsonl)",
          checkpoint.string());
  const fs::path file = run / "eval" / (name + ".json");
  std::error_code error;
  fs::create_directories(file.parent_path(), error);
  require(!error, "--save: {} can't be made: {}", file.parent_path().string(), error.message());
  write_whole_file(file.string(), result.dump(1) + "\n", true);
  return file;
}

std::map<std::string, nlohmann::json> saved_results(const fs::path& run) {
  std::map<std::string, nlohmann::json> results;
  const fs::path folder = run / "eval";
  if (!fs::is_directory(folder)) return results;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".json") continue;
    std::ifstream in(entry.path());
    nlohmann::json value = nlohmann::json::parse(in, nullptr, false);
    require(!value.is_discarded(), "{}: is not JSON", entry.path().string());
    results[entry.path().stem().string()] = std::move(value);
  }
  return results;
}

}  // namespace sfa
