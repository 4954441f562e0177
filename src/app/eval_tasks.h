// What the subcommands of `sfa eval` share, and those that have a file of their own.
#pragma once

#include <CLI/CLI.hpp>

#include "eval/loaded_model.h"

namespace sfa::app {

/// --checkpoint, --device, --dtype, --ema, --set.
void add_model_options(CLI::App& command, LoadOptions& load);

/// --save.
void add_save_option(CLI::App& command, bool& save, const std::string& what);

void add_task_commands(CLI::App& eval);    // lambada_openai, hellaswag, piqa, arc_easy, arc_challenge
void add_needle_commands(CLI::App& eval);  // niah, passkey

}  // namespace sfa::app
