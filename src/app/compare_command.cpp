// sfa compare RUN_DIR... [--html FILE]
#include <fmt/core.h>

#include <filesystem>
#include <set>

#include "analysis/compare.h"
#include "analysis/report.h"
#include "app/commands.h"
#include "core/file.h"

namespace sfa::app {
namespace {

struct CompareOptions {
  std::vector<std::string> runs, latency;
  std::string html;
  bool json = false;
};

// The command line again, for the end of the report.
std::string command_of(const CompareOptions& o) {
  std::string text = "sfa compare";
  for (const std::string& run : o.runs) text += " " + run;
  for (const std::string& file : o.latency) text += " --latency " + file;
  return text + " --html " + o.html;
}

// A folder that two patterns of the shell name would count as two seeds.
std::vector<std::string> each_once(const std::vector<std::string>& folders) {
  std::set<std::filesystem::path> seen;
  std::vector<std::string> all;
  for (const std::string& folder : folders)
    if (seen.insert(std::filesystem::weakly_canonical(folder)).second) all.push_back(folder);
  return all;
}

void compare(const CompareOptions& o) {
  if (o.runs.empty() && (o.html.empty() || o.latency.empty()))
    throw UsageError("runs: at least one folder is needed, or --html and --latency");
  if (!o.latency.empty() && o.html.empty()) throw UsageError("--latency: is for the report, which --html names");
  std::vector<RunSummary> runs;
  const std::vector<std::string> folders = each_once(o.runs);
  for (const std::string& folder : folders) runs.push_back(read_run(folder));
  if (!o.html.empty())
    write_whole_file(o.html, html_report(read_report(folders), {.latency = o.latency, .command = command_of(o)}), true);
  if (!runs.empty() || o.json) fmt::print("{}", o.json ? compare_json(runs).dump(2) + "\n" : compare_table(runs));
  if (!o.html.empty() && !o.json) fmt::print("{}report: {}\n", runs.empty() ? "" : "\n", o.html);
}

}  // namespace

void add_compare_command(CLI::App& app) {
  auto o = std::make_shared<CompareOptions>();
  CLI::App* command =
      app.add_subcommand("compare", "Runs beside each other: loss, perplexity, FLOPs, cache bytes and time");
  command->add_option("runs", o->runs, "run folders; the others are held against the first");
  command->add_flag("--json", o->json, "print one JSON array");
  command->add_option("--html", o->html, "also write a report here, one file: tables, curves, kept evaluations");
  command
      ->add_option("--latency", o->latency,
                   "files of `sfa bench attention --json`, for the report; may be given several times")
      ->expected(1)
      ->take_all();
  command->callback([o] { compare(*o); });
}

}  // namespace sfa::app
