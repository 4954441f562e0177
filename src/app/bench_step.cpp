// sfa bench step CONFIG: the training step that `sfa train` runs, on the configuration's data, timed.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "app/bench_command.h"
#include "data/loader.h"
#include "eval/loaded_model.h"
#include "train/trainer.h"

namespace sfa::app {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  int steps = 10, warmup = 3;
  bool json = false;
};

LoaderOptions loader_options(const Config& c) {
  return {.paths = {c.data.train},
          .split = Split::train,
          .seq_len = static_cast<int>(c.data.seq_len),
          .batch_size = static_cast<int>(c.data.batch_size),
          .micro_batch_size = static_cast<int>(c.data.micro_batch_size),
          .seed = static_cast<std::uint64_t>(c.seed),
          .shuffle = c.data.shuffle,
          .document_mask = c.data.document_mask};
}

void run_step(TrainingState& state, Loader& loader, const Config& config, std::int64_t step) {
  Context& ctx = state.context();
  const float loss_scale = 1.0f / static_cast<float>(config.data.batch_size * config.data.seq_len);
  state.begin_step(ctx);
  for (int m = 0; m < loader.micro_steps(); ++m) state.micro_step(ctx, loader.next(), loss_scale);
  state.update(ctx, step);
}

// Milliseconds of each of `count` steps from `first` on.
std::vector<double> time_steps(TrainingState& state, Loader& loader, const Config& config, int first, int count) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> all;
  state.context().synchronize();
  for (int s = first; s < first + count; ++s) {
    const auto start = Clock::now();
    run_step(state, loader, config, s);
    state.context().synchronize();
    all.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  return all;
}

double median(std::vector<double> x) {
  const auto middle = x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2);
  std::nth_element(x.begin(), middle, x.end());
  return *middle;
}

void bench(const Options& o) {
  Config config = load_config(o.config, o.overrides);
  require(!config.data.train.empty(), "data.train: is not set; it names a token file made by `sfa data tokenize`");
  if (config.model.vocab_size == 0) config.model.vocab_size = ShardSet({config.data.train}).vocab_size();
  TrainingState state(config, choose_device(config.device));
  state.initialize(static_cast<std::uint64_t>(config.seed));
  Loader loader(loader_options(config));
  time_steps(state, loader, config, 0, o.warmup);
  const double ms = median(time_steps(state, loader, config, o.warmup, o.steps));
  const double tokens = static_cast<double>(config.data.batch_size * config.data.seq_len);
  const nlohmann::ordered_json out = {{"device", state.context().device_name()},
                                      {"steps", o.steps},
                                      {"step_ms", ms},
                                      {"tokens_per_sec", tokens / ms * 1000},
                                      {"planned_bytes", state.memory().bytes()}};
  if (o.json) {
    fmt::print("{}\n", out.dump(2));
    return;
  }
  fmt::print("{}: {:.2f} ms a step of {:.0f} tokens (median of {}), {:.0f} tokens/s, {:.2f} GiB planned\n",
             state.context().device_name(), ms, tokens, o.steps, tokens / ms * 1000,
             static_cast<double>(state.memory().bytes()) / (1 << 30));
}

}  // namespace

void add_bench_step(CLI::App& group) {
  auto o = std::make_shared<Options>();
  CLI::App* command = group.add_subcommand("step", "Time the training step of a configuration on its data");
  command->add_option("config", o->config, "the run's YAML file")->required();
  command->add_option("overrides", o->overrides, "key.path=value");
  command->add_option("--steps", o->steps, "optimizer steps that are timed")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_option("--warmup", o->warmup, "steps before them")->check(CLI::Range(0, 1000000))->capture_default_str();
  command->add_flag("--json", o->json, "print one JSON object");
  command->callback([o] { bench(*o); });
}

}  // namespace sfa::app
