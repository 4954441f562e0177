// Logging for people: spdlog to standard error and, once a run folder is known, to its log file.
#pragma once

#include <spdlog/spdlog.h>

#include <filesystem>

namespace sfa {

/// Plain lines on standard error ("warning: ..." above info). Called once by main.
void start_logging();
/// Also appends every line, with time and level, to `file`.
void log_to_file(const std::filesystem::path& file);

}  // namespace sfa
