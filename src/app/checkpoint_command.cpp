// sfa checkpoint list | verify | prune
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/commands.h"
#include "checkpoint/checkpoint.h"
#include "core/error.h"
#include "core/progress.h"

namespace sfa::app {
namespace {
namespace fs = std::filesystem;

// What one line of `list` and `verify` says; an error in place of the figures when the checkpoint cannot be opened or
// is damaged.
struct Report {
  fs::path folder;
  std::int64_t step = 0, bytes = 0;
  std::size_t tensors = 0;
  std::string error;
};

Report inspect(const fs::path& folder, bool every_bit) {
  Report report{folder, 0, 0, 0, {}};
  try {
    CheckpointReader reader(folder);
    report.step = reader.step();
    report.bytes = reader.bytes();
    report.tensors = reader.tensors().size();
    if (every_bit) reader.verify();
  } catch (const Error& error) {
    report.error = error.what();
  }
  return report;
}

void print(const std::vector<Report>& reports, const char* good, bool json) {
  if (json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Report& r : reports) {
      nlohmann::ordered_json entry = {{"path", r.folder.string()}, {"good", r.error.empty()}};
      if (r.error.empty()) {
        entry["step"] = r.step;
        entry["bytes"] = r.bytes;
        entry["tensors"] = r.tensors;
      } else {
        entry["error"] = r.error;
      }
      list.push_back(std::move(entry));
    }
    fmt::print("{}\n", list.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    return;
  }
  for (const Report& r : reports) {
    if (r.error.empty()) {
      fmt::print("step {:>10}  {:>9}  {:>5} tensors  {}{}\n", grouped(r.step), bytes_text(static_cast<double>(r.bytes)),
                 r.tensors, r.folder.string(), good);
    } else {
      fmt::print("DAMAGED  {}\n", r.error);
    }
  }
}

// The damaged ones make the command fail, after all were looked at.
void require_good(const std::vector<Report>& reports) {
  std::size_t bad = 0;
  for (const Report& r : reports) bad += r.error.empty() ? 0 : 1;
  std::fflush(stdout);
  require(bad == 0, "{} of {} checkpoint{} damaged", bad, reports.size(), reports.size() == 1 ? "" : "s");
}

// The checkpoint itself, or all finished ones of a run folder.
std::vector<fs::path> checkpoints_at(const fs::path& path) {
  const fs::path newest = find_checkpoint(path);  // throws when there is none
  if (newest == path) return {path};
  return list_checkpoints(path);
}

struct Arguments {
  std::string path;
  bool json = false;
  std::int64_t keep_last = 1;
  std::int64_t keep_every = 0;
};

void run_list(const Arguments& arguments) {
  std::vector<Report> reports;
  for (const fs::path& folder : checkpoints_at(arguments.path)) reports.push_back(inspect(folder, false));
  print(reports, "", arguments.json);
}

void run_verify(const Arguments& arguments) {
  std::vector<Report> reports;
  for (const fs::path& folder : checkpoints_at(arguments.path)) {
    reports.push_back(inspect(folder, true));
    if (!arguments.json) print({reports.back()}, ": every checksum matches", false);
  }
  if (arguments.json) print(reports, "", true);
  require_good(reports);
}

void run_prune(const Arguments& arguments) {
  // A misspelt folder is an error, not an empty list.
  require(find_checkpoint(arguments.path) != arguments.path,
          "{} is a checkpoint; prune takes the run folder it lies in", arguments.path);
  for (const fs::path& folder : prune_checkpoints(arguments.path, arguments.keep_last, arguments.keep_every))
    fmt::print("deleted {}\n", folder.string());
  fmt::print("kept {} in {}\n", list_checkpoints(arguments.path).size(), arguments.path);
}

}  // namespace

void add_checkpoint_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("checkpoint", "List, check or delete the checkpoints of a run");
  command->require_subcommand(1);
  const auto add = [&](const char* name, const char* text, const char* path, void (*run)(const Arguments&)) {
    auto arguments = std::make_shared<Arguments>();
    CLI::App* sub = command->add_subcommand(name, text);
    sub->add_option("path", arguments->path, path)->required();
    sub->callback([arguments, run] { run(*arguments); });
    return std::pair{sub, arguments};
  };
  const auto [list, list_arguments] =
      add("list", "Show step, size and folder of every finished checkpoint, oldest first",
          "a run folder or a checkpoint", run_list);
  list->add_flag("--json", list_arguments->json, "one JSON list instead of a table");
  const auto [verify, verify_arguments] =
      add("verify", "Read every byte and compare every checksum; exit code 1 when one is damaged",
          "a run folder (all of its checkpoints) or a checkpoint", run_verify);
  verify->add_flag("--json", verify_arguments->json, "one JSON list instead of a table");
  const auto [prune, prune_arguments] =
      add("prune", "Delete old checkpoints and the remains of writers that were killed", "a run folder", run_prune);
  prune->add_option("--keep-last", prune_arguments->keep_last, "the newest that stay")
      ->required()
      ->check(CLI::PositiveNumber);
  prune->add_option("--keep-every", prune_arguments->keep_every, "steps that are a multiple stay too; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

}  // namespace sfa::app
