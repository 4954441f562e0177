// sfa plan CONFIG [key=value...] [--device cuda] [--memory 141GB] [--ranks 8] [--ranks 8,64,512 --link nvlink,ib400
// --micro-step-ms 105]
#include <fmt/core.h>

#include <algorithm>

#include "analysis/run_plan.h"
#include "analysis/scaling.h"
#include "app/commands.h"
#include "core/build_config.h"
#include "core/device_cuda.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/progress.h"
#include "eval/loaded_model.h"

namespace sfa::app {
namespace {

struct PlanOptions {
  std::string config, device, memory;
  std::vector<std::string> overrides;
  std::vector<int> ranks{1};
  std::vector<std::string> links;
  double micro_step_ms = 0, update_ms = 0;
  int ranks_per_machine = 8;
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
std::optional<std::size_t> room_of(const PlanOptions& o, Device device) {
  if (!o.memory.empty()) return parse_bytes(o.memory, "--memory");
  if (device == Device::cpu) return host_memory().free;
  if (!cuda_available()) return std::nullopt;
  std::size_t context = 0;
  const MemoryThere there = memory_of(device);
  if constexpr (kHasCuda) context = cuda_ops::own_memory().context;
  return std::min(there.free + context, there.total);
}

// Every rank does what the file asks of one, or every group of ranks that share sequences: the batch grows with them.
void predict(const Config& config, const PlanOptions& o, Device device) {
  ScalingInput in;
  in.micro_step_s = o.micro_step_ms / 1000;
  in.update_s = o.update_ms / 1000;
  in.micro_steps = config.data.batch_size / config.data.micro_batch_size;
  in.bucket_bytes = static_cast<double>(config.dist.bucket_mb) * 1e6;
  in.ranks_per_machine = o.ranks_per_machine;
  in.inside = parse_link(o.links.front());
  in.between = parse_link(o.links.back());
  Config alone = config;
  alone.dist.context_parallel = 1;
  const TrainingMemory one(alone, device);
  in.ring = ring_of(config, *one.model, in.micro_step_s);
  const auto element = [](const Tensor& t) { return static_cast<double>(size_of(t.dtype)); };
  take_bytes(in, one.model->parameters(), element(one.buffers.gradients), element(one.buffers.params));
  fmt::print("\nsteps of {} micro-steps of {} sequences a rank, {:.2f} ms each, links {} and {}\n", in.micro_steps,
             config.data.micro_batch_size, o.micro_step_ms, in.inside.name, in.between.name);
  fmt::print("{:>6} {:>5} {:>11} {:>12} {:>11} {:>14}\n", "ranks", "zero", "ms a step", "waited for", "efficiency",
             "memory a rank");
  for (const int ranks : o.ranks)
    for (const std::int64_t zero : {0, 1, 2}) {
      Config many = config;
      many.data.batch_size *= std::max<std::int64_t>(1, ranks / config.dist.context_parallel);
      many.dist.zero = zero;
      if (many.dist.context_parallel > 1) many = for_ranks(many, ranks);
      const ScalingPoint p = predict_step(in, ranks, zero);
      const std::size_t memory = plan_memory(many, TrainingMemory(many, device, {0, ranks})).total();
      fmt::print("{:>6} {:>5} {:>11.2f} {:>12.2f} {:>9.1f} % {:>14}\n", ranks, zero, p.step_s * 1000,
                 p.exposed_s * 1000, p.efficiency * 100, bytes_text(static_cast<double>(memory)));
    }
}

void plan(const PlanOptions& o) {
  Config config = load_config(o.config, o.overrides);
  take_vocabulary(config);
  const Device device = device_of(o.device.empty() ? config.device : o.device);
  const RunPlan result = plan_run(config, device, room_of(o, device),
                                  o.links.empty() ? o.ranks.front() : static_cast<int>(config.dist.context_parallel));
  fmt::print("{}", o.json ? plan_json(result).dump(2) + "\n" : plan_table(result));
  if (!o.links.empty()) predict(config, o, device);
}

}  // namespace

void add_plan_command(CLI::App& app) {
  auto o = std::make_shared<PlanOptions>();
  CLI::App* command =
      app.add_subcommand("plan", "Parameters, memory and work of a run, and the largest micro-batch that fits");
  command->add_option("config", o->config, "the run's YAML file")->required();
  command->add_option("overrides", o->overrides, "key.path=value");
  command->add_option("--device", o->device, "cuda or cpu; default: `device` of the file. No card is needed for cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->add_option("--memory", o->memory, "what there is, for example 141GB or 80GiB; default: what is free here");
  command->add_option("--ranks", o->ranks, "memory of one of so many ranks; with --link several numbers: 8,64,512")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 1 << 20));
  auto* link = command
                   ->add_option("--link", o->links,
                                "predict steps on --ranks over this link, or these inside of and between machines: "
                                "nvlink, ib400, ib200, eth100, or GB/s of a rank")
                   ->delimiter(',')
                   ->allow_extra_args(false);
  auto* micro_step =
      command->add_option("--micro-step-ms", o->micro_step_ms, "a micro-step's time on one rank, as measured")
          ->check(CLI::PositiveNumber);
  link->needs(micro_step);
  command->add_option("--update-ms", o->update_ms, "the optimizer's time on one rank")->check(CLI::NonNegativeNumber);
  command->add_option("--ranks-per-machine", o->ranks_per_machine, "default 8")->check(CLI::PositiveNumber);
  command->add_flag("--json", o->json, "print one JSON object, bytes and FLOPs as plain numbers");
  command->callback([o] { plan(*o); });
}

}  // namespace sfa::app
