// sfa compare RUN_DIR...
#include <fmt/core.h>

#include "analysis/compare.h"
#include "app/commands.h"

namespace sfa::app {

void add_compare_command(CLI::App& app) {
  struct Options {
    std::vector<std::string> runs;
    bool json = false;
  };
  auto o = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("compare", "Runs beside each other: loss, perplexity, FLOPs, cache bytes and time");
  command->add_option("runs", o->runs, "run folders; the others are held against the first")->required();
  command->add_flag("--json", o->json, "print one JSON array");
  command->callback([o] {
    std::vector<RunSummary> runs;
    for (const std::string& folder : o->runs) runs.push_back(read_run(folder));
    fmt::print("{}", o->json ? compare_json(runs).dump(2) + "\n" : compare_table(runs));
  });
}

}  // namespace sfa::app
