// sfa bench: measurements on the machine at hand.
#include "app/bench_command.h"

#include "app/commands.h"

namespace sfa::app {

void add_bench_command(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Measure on this machine");
  bench->require_subcommand(1);
  add_bench_attention(*bench);
  add_bench_step(*bench);
  add_bench_generate(*bench);
}

}  // namespace sfa::app
