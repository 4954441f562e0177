// sfa train CONFIG [key=value...] [--resume]
#include "app/commands.h"
#include "config/config.h"
#include "dist/control.h"
#include "train/trainer.h"

namespace sfa::app {
namespace {

// Of several ranks, which all read the same, one says what is wrong.
Config load_once(const std::string& file, const std::vector<std::string>& overrides) {
  try {
    return load_config(file, overrides);
  } catch (const Error&) {
    if (read_launch(process_environment).rank > 0) throw AgreedError("");
    throw;
  }
}

}  // namespace

void add_train_command(CLI::App& app) {
  struct Options {
    std::string config;
    std::vector<std::string> overrides;
    bool resume = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("train", "Train or resume the run that a YAML file describes");
  command->add_option("config", options->config, "the run's YAML file (docs/configuration.md)")->required();
  command->add_option("overrides", options->overrides, "key.path=value, for example train.max_steps=200");
  command->add_flag("--resume", options->resume,
                    "continue from the newest checkpoint in output_dir, or start when there is none");
  command->callback([options] {
    if (options->resume) options->overrides.emplace_back("resume=auto");
    train(load_once(options->config, options->overrides));
  });
}

}  // namespace sfa::app
