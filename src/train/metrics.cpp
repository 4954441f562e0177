#include "train/metrics.h"

#include <vector>

#include "core/error.h"

namespace sfa {

MetricsFile::MetricsFile(std::filesystem::path file, std::int64_t last_step, std::int64_t rollbacks)
    : path_(std::move(file)) {
  std::vector<std::string> kept;
  bool dropped = false;
  {
    std::ifstream in(path_);
    for (std::string line; std::getline(in, line);) {
      const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
      const bool keep = object.is_object() && object.contains("step") && object["step"].is_number() &&
                        object["step"].get<std::int64_t>() <= last_step &&
                        (!object.contains("rollback") || !object["rollback"].is_number() ||
                         object["rollback"].get<std::int64_t>() <= rollbacks);
      if (keep)
        kept.push_back(line);
      else
        dropped = true;
    }
  }
  if (dropped) {
    const std::filesystem::path temporary = path_.string() + ".tmp";
    {
      std::ofstream rewritten(temporary, std::ios::trunc);
      for (const std::string& line : kept) rewritten << line << '\n';
      require(rewritten.flush().good(), "{}: can't be written", temporary.string());
    }
    std::filesystem::rename(temporary, path_);
  }
  out_.open(path_, std::ios::app);
  require(out_.good(), "{}: can't be opened for writing", path_.string());
}

void MetricsFile::write(const nlohmann::ordered_json& object) {
  out_ << object.dump() << '\n' << std::flush;
  require(out_.good(), "{}: can't be written; is the disk full?", path_.string());
}

}  // namespace sfa
