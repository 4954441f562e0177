// sfa config: the resolved configuration of a file, or the reference of all keys.
#include <fmt/core.h>

#include "app/commands.h"
#include "config/config.h"

namespace sfa::app {

void add_config_command(CLI::App& app) {
  struct Options {
    std::string file;
    std::vector<std::string> overrides;
    bool reference = false;
  };
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("config", "Check a YAML file and print it resolved, or list every key");
  command->add_option("config", o->file, "the run's YAML file");
  command->add_option("overrides", o->overrides, "key.path=value");
  command->add_flag("--reference", o->reference, "print the table of all keys, defaults and meanings");
  command->callback(
      [o] { fmt::print("{}", o->reference ? config_reference() : dump_config(load_config(o->file, o->overrides))); });
}

}  // namespace sfa::app
