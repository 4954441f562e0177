// sfa flops CONFIG [key=value...] [--context N,N...]
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "analysis/compare.h"
#include "analysis/run_plan.h"
#include "app/commands.h"
#include "core/error.h"
#include "core/progress.h"

namespace sfa::app {
namespace {

struct Options {
  std::string config, dtype = "bf16";
  std::vector<std::string> overrides;
  std::vector<std::int64_t> context;
  bool json = false;
};

void flops(const Options& o) {
  Config config = load_config(o.config, o.overrides);
  take_vocabulary(config);
  std::vector<std::int64_t> lengths = o.context;
  if (lengths.empty()) lengths.push_back(config.data.seq_len);
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  for (const std::int64_t T : lengths) {
    require(T >= 1, "--context: must be at least 1, got {}", T);
    const ModelCost c = model_cost(config, T, o.dtype == "bf16" ? DType::bf16 : DType::f32);
    out.push_back({{"context", T},
                   {"parameters", c.parameters},
                   {"forward_flops_per_token", c.forward_flops_per_token},
                   {"backward_flops_per_token", c.backward_flops_per_token},
                   {"attention_flops_per_token", c.attention_flops_per_token},
                   {"attention_flops", c.attention_flops_per_token * static_cast<double>(T)},
                   {"kv_bytes_per_token", c.kv_bytes_per_token}});
  }
  if (o.json) {
    fmt::print("{}\n", out.dump(2));
    return;
  }
  fmt::print("{} {}, {} parameters, values in {}\n", config.model.arch, attention_label(config.model),
             grouped(out[0]["parameters"].get<std::int64_t>()), o.dtype);
  fmt::print("{:>10}  {:>20}  {:>21}  {:>22}  {:>14}\n", "context", "forward FLOPs/token", "backward FLOPs/token",
             "attention FLOPs/token", "KV bytes/token");
  for (const auto& row : out)
    fmt::print("{:>10}  {:>20.5g}  {:>21.5g}  {:>22.5g}  {:>14}\n", row["context"].get<std::int64_t>(),
               row["forward_flops_per_token"].get<double>(), row["backward_flops_per_token"].get<double>(),
               row["attention_flops_per_token"].get<double>(),
               grouped(static_cast<std::int64_t>(row["kv_bytes_per_token"].get<double>())));
}

}  // namespace

void add_flops_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "flops", "Work and cache of a model by formula: causal pairs alone, SFA's products on uniform supports");
  command->add_option("config", o->config, "the run's YAML file")->required();
  command->add_option("overrides", o->overrides, "key.path=value");
  command->add_option("--context", o->context, "lengths in tokens, for example 1024,8192; default: data.seq_len")
      ->delimiter(',');
  command->add_option("--dtype", o->dtype, "what the cache holds: fp32 or bf16")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command->add_flag("--json", o->json, "print one JSON array, an object a length");
  command->callback([o] { flops(*o); });
}

}  // namespace sfa::app
