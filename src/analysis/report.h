// Runs beside each other as one HTML file: tables and charts (inline SVG), no script, nothing loaded from elsewhere,
// light and dark by the reader's setting, and fit to print. Every number says in its cell which file of a run folder it
// was read from, or what it was computed from.
#pragma once

#include <string>
#include <vector>

#include "analysis/report_data.h"

namespace sfa {

struct ReportOptions {
  std::vector<std::string> latency;  // files that `sfa bench attention --json` wrote
  std::string command;               // what made the report, shown at its end
};

/// `data` may hold no run, for latency alone.
std::string html_report(const ReportData& data, const ReportOptions& options);

/// Loss against bytes of the KV cache, a chart and its table (report_frontier.cpp).
std::string report_frontier(const ReportData& data);
/// Parts of the page (report_results.cpp); empty when no run has such results.
std::string report_tasks(const ReportData& data);
std::string report_needles(const ReportData& data);
std::string report_supports(const ReportData& data);
/// Throws Error when a file is not one of `sfa bench attention`.
std::string report_latency(const std::vector<std::string>& files);

}  // namespace sfa
