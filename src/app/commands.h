// Each subcommand adds itself to the command line: its options, and what runs when it was chosen.
#pragma once

#include <CLI/CLI.hpp>

namespace sfa::app {
void add_data_command(CLI::App& app);  // sfa data tokenize | info | train-tokenizer | needle
void add_needle_data_command(CLI::App& data);
void add_train_command(CLI::App& app);       // sfa train CONFIG [key=value...]
void add_eval_command(CLI::App& app);        // sfa eval perplexity | lambada_openai | ... | niah | passkey
void add_generate_command(CLI::App& app);    // sfa generate
void add_convert_command(CLI::App& app);     // sfa convert IN OUT --to sfa | hf
void add_config_command(CLI::App& app);      // sfa config
void add_compare_command(CLI::App& app);     // sfa compare RUN_DIR...
void add_flops_command(CLI::App& app);       // sfa flops CONFIG [key=value...]
void add_plan_command(CLI::App& app);        // sfa plan CONFIG [key=value...]
void add_doctor_command(CLI::App& app);      // sfa doctor [CONFIG]
void add_analyze_command(CLI::App& app);     // sfa analyze support
void add_checkpoint_command(CLI::App& app);  // sfa checkpoint list | verify | prune
void add_bench_command(CLI::App& app);       // sfa bench attention | step | generate
}  // namespace sfa::app
