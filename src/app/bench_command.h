// The subcommands of `sfa bench`; each adds itself to the group.
#pragma once

#include <CLI/CLI.hpp>

namespace sfa::app {
void add_bench_attention(CLI::App& bench);  // sfa bench attention
void add_bench_step(CLI::App& bench);       // sfa bench step CONFIG [key=value...]
void add_bench_generate(CLI::App& bench);   // sfa bench generate CONFIG [key=value...]
}  // namespace sfa::app
