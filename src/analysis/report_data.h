// What a report is made of: runs read from their folders, and runs that differ in nothing but the seed put together.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "analysis/interval.h"
#include "analysis/paper_figures.h"
#include "analysis/run_curve.h"
#include "analysis/run_summary.h"

namespace sfa {

struct ReportRun {
  RunSummary summary;
  std::vector<CurvePoint> curve;
  std::map<std::string, nlohmann::json> results;  // RUN/eval/*.json
  std::vector<DocumentLoss> documents;            // of eval/perplexity.json; empty when there is none
  double tokens_per_second = 0;                   // median over the lines of metrics
  std::string command;                            // RUN.command, which the scripts of scripts/reproduce leave; or empty

  [[nodiscard]] const std::filesystem::path& folder() const { return summary.folder; }
};
ReportRun read_report_run(const std::filesystem::path& folder);

/// Runs of one configuration, in the order given.
struct ReportGroup {
  std::string label;
  std::vector<std::size_t> runs;
  std::optional<double> loss;  // mean of the newest validation losses
  /// Against the first group: over documents (means over the seeds that both have), and over those seeds.
  std::optional<Interval> gap_documents, gap_seeds;
  std::optional<PaperFigures> paper;
  std::size_t seed_pairs = 0;  // that gap_seeds is the mean of; of one there is no interval
};

struct ReportData {
  std::vector<ReportRun> runs;
  std::vector<ReportGroup> groups;  // in order of their first run; the first is what the others are held against
};

/// Throws Error with one sentence for a folder that is no run.
ReportData read_report(const std::vector<std::string>& folders);

}  // namespace sfa
