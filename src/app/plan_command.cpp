// sfa plan CONFIG [key=value...] [--device cuda] [--memory 141GB] [--ranks 8]
#include <fmt/core.h>

#include "analysis/run_plan.h"
#include "app/commands.h"
#include "core/build_config.h"
#include "core/device_cuda.h"
#include "core/error.h"
#include "core/memory.h"
#include "eval/loaded_model.h"

namespace sfa::app {
namespace {

struct Options {
  std::string config, device, memory;
  std::vector<std::string> overrides;
  int ranks = 1;
  bool json = false;
};

// Memory can be planned for a GPU that is not there, by a build that knows its kernels.
Device device_of(const std::string& wanted) {
  if (wanted != "cuda") return choose_device(wanted);
  require(kHasCuda,
          "device: this build has no CUDA backend, so it does not know what a GPU would take; build with "
          "-DSFA_CUDA=ON (no card is needed to plan), or plan for --device cpu");
  return Device::cuda;
}

// All that the device has for a run. What is free on a card is that without CUDA's own part, which is there already.
std::optional<std::size_t> room_of(const Options& o, Device device) {
  if (!o.memory.empty()) return parse_bytes(o.memory, "--memory");
  if (device == Device::cpu) return host_memory().free;
  if (!cuda_available()) return std::nullopt;
  std::size_t context = 0;
  const MemoryThere there = memory_of(device);
  if constexpr (kHasCuda) context = cuda_ops::own_memory().context;
  return std::min(there.free + context, there.total);
}

void plan(const Options& o) {
  Config config = load_config(o.config, o.overrides);
  take_vocabulary(config);
  const Device device = device_of(o.device.empty() ? config.device : o.device);
  const RunPlan result = plan_run(config, device, room_of(o, device), o.ranks);
  fmt::print("{}", o.json ? plan_json(result).dump(2) + "\n" : plan_table(result));
}

}  // namespace

void add_plan_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("plan", "Parameters, memory and work of a run, and the largest micro-batch that fits");
  command->add_option("config", o->config, "the run's YAML file")->required();
  command->add_option("overrides", o->overrides, "key.path=value");
  command->add_option("--device", o->device, "cuda or cpu; default: `device` of the file. No card is needed for cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->add_option("--memory", o->memory, "what there is, for example 141GB or 80GiB; default: what is free here");
  command->add_option("--ranks", o->ranks, "memory of one of so many ranks (dist.zero shares it out)")
      ->check(CLI::Range(1, 1 << 20));
  command->add_flag("--json", o->json, "print one JSON object, bytes and FLOPs as plain numbers");
  command->callback([o] { plan(*o); });
}

}  // namespace sfa::app
