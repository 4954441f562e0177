// What this build has, what this machine has, and what is missing and how to get it: `sfa doctor`.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "config/config.h"

namespace sfa {

struct Finding {
  enum class Level : std::uint8_t { good, missing, broken };  // missing: something optional
  Level level = Level::good;
  std::string what;    // "GPU"
  std::string detail;  // one phrase
  std::string remedy;  // command or package; empty when there is nothing to do
};

struct Diagnosis {
  nlohmann::ordered_json build, machine;  // core/environment.h
  std::vector<Finding> findings;
  [[nodiscard]] bool healthy() const;  // nothing is broken
};

/// Looks at everything that a run would stand on; `config` names device, output_dir and data of one, and may be null.
/// Changes nothing on disk.
Diagnosis diagnose(const Config* config);

std::string diagnosis_text(const Diagnosis& diagnosis);
nlohmann::ordered_json diagnosis_json(const Diagnosis& diagnosis);

}  // namespace sfa
