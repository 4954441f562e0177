// sfa bench step CONFIG: the training step that `sfa train` runs, on the configuration's data: tokens a second, time by
// op beside what the device can do, model FLOPs utilisation, memory.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <numeric>

#include "analysis/ceilings.h"
#include "analysis/compare.h"
#include "analysis/op_timer.h"
#include "app/bench_command.h"
#include "core/build_config.h"
#include "core/device_cuda.h"
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
          .document_mask = c.data.document_mask,
          .answers = c.train.loss_mask == "answers"};
}

void run_step(TrainingState& state, Loader& loader, const Config& config, std::int64_t step) {
  Context& ctx = state.context();
  const float loss_scale = 1.0f / static_cast<float>(config.data.batch_size * config.data.seq_len);
  state.begin_step(ctx, step);
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

double mean(const std::vector<double>& x) {
  return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

double median(std::vector<double> x) {
  const auto middle = x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2);
  std::nth_element(x.begin(), middle, x.end());
  return *middle;
}

struct Measured {
  Config config;
  std::string device, dtype, attention;
  double step_ms = 0, tokens = 0;  // median, where steps distil in turns the mean of whole turns; tokens of a step
  int steps = 0, turn = 1;         // that were timed; every how many one is like another: only some of them distil
  double watched_ms = 0;           // a step in the pass that times every op
  int watched_steps = 0;
  std::vector<OpTime> ops;  // of all watched steps
  Ceilings ceilings;
  double parameters = 0, convention_flops = 0, exact_flops = 0;  // a token
  std::size_t planned_bytes = 0, card_used_bytes = 0;

  [[nodiscard]] double tflops(double flops_per_token) const { return flops_per_token * tokens / step_ms * 1e-9; }
};

// The plain timing comes first and alone; the pass that looks at every op is one of its own behind it.
Measured measure(const Options& o) {
  Measured m;
  m.config = load_config(o.config, o.overrides);
  Config& config = m.config;
  require(!config.data.train.empty(), "data.train: is not set; it names a token file made by `sfa data tokenize`");
  config.model.attention.k_from = 0;  // the k that stays
  if (config.model.vocab_size == 0) config.model.vocab_size = ShardSet({config.data.train}).vocab_size();
  TrainingState state(config, choose_device(config.device));
  state.initialize(static_cast<std::uint64_t>(config.seed));
  Context& ctx = state.context();
  Loader loader(loader_options(config));
  if (config.model.attention.distill_lambda > 0) m.turn = static_cast<int>(config.train.distill_every);
  m.steps = (o.steps + m.turn - 1) / m.turn * m.turn;
  time_steps(state, loader, config, 0, o.warmup);
  const std::vector<double> times = time_steps(state, loader, config, o.warmup, m.steps);
  m.step_ms = m.turn > 1 ? mean(times) : median(times);
  m.tokens = static_cast<double>(config.data.batch_size * config.data.seq_len);
  {
    OpTimer timer(ctx);
    m.watched_steps = std::max(2, m.turn);
    for (int s = 0; s < m.watched_steps; ++s) {
      run_step(state, loader, config, o.warmup + m.steps + s);
      m.watched_ms += timer.collect() / m.watched_steps;
    }
    m.ops = timer.times();
  }
  m.device = ctx.device_name();
  m.dtype = name_of(ctx.round_bf16 ? DType::bf16 : state.model().dtype());
  m.attention = attention_label(config.model);
  m.planned_bytes = state.memory().bytes();
  std::size_t free = std::size_t{1} << 30;
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) {
      const auto [left, total] = cuda_ops::memory_free_total();
      m.card_used_bytes = total - left;
      free = left / 2;
    }
  }
  m.ceilings = measure_ceilings(ctx, state.model().dtype(), free);
  const ModelCost cost = state.model().cost(config.data.seq_len);
  const ModelConfig& c = config.model;
  m.parameters = cost.parameters;
  m.convention_flops = 6 * cost.parameters + 12.0 * static_cast<double>(c.num_hidden_layers * c.num_attention_heads *
                                                                        c.head_dim * config.data.seq_len);
  m.exact_flops = cost.forward_flops_per_token + cost.backward_flops_per_token;
  return m;
}

double ratio(double a, double b) {
  return b > 0 ? a / b : 0;
}

nlohmann::ordered_json as_json(const Measured& m) {
  nlohmann::ordered_json out = {{"device", m.device},
                                {"dtype", m.dtype},
                                {"attention", m.attention},
                                {"parameters", m.parameters},
                                {"micro_batch_size", m.config.data.micro_batch_size},
                                {"batch_size", m.config.data.batch_size},
                                {"seq_len", m.config.data.seq_len},
                                {"steps", m.steps},
                                {"step_ms", m.step_ms},
                                {"tokens_per_sec", m.tokens / m.step_ms * 1000},
                                {"planned_bytes", m.planned_bytes},
                                {"card_used_bytes", m.card_used_bytes},
                                {"ceiling_tflops", m.ceilings.tflops},
                                {"ceiling_gb_per_sec", m.ceilings.gb_per_sec},
                                {"card_tflops", m.ceilings.card_tflops},
                                {"flops_per_token_6n_12lct", m.convention_flops},
                                {"flops_per_token_exact", m.exact_flops},
                                {"mfu_6n_12lct", ratio(m.tflops(m.convention_flops), m.ceilings.card_tflops)},
                                {"mfu_exact", ratio(m.tflops(m.exact_flops), m.ceilings.card_tflops)},
                                {"watched_step_ms", m.watched_ms}};
  nlohmann::ordered_json& ops = out["ops"] = nlohmann::ordered_json::array();
  for (const OpTime& t : m.ops)
    ops.push_back({{"kind", t.work.kind},
                   {"shape", t.work.shape},
                   {"calls", static_cast<double>(t.calls) / m.watched_steps},
                   {"ms", t.ms / m.watched_steps},
                   {"tflops", ratio(t.work.flops, t.ms) * 1e-9},
                   {"gb_per_sec", ratio(t.work.bytes, t.ms) * 1e-6}});
  return out;
}

void print_ops(const Measured& m) {
  fmt::print("{:<26} {:<24} {:>6} {:>9} {:>6} {:>9} {:>5} {:>8} {:>5}\n", "op", "shape", "calls", "ms", "share",
             "TFLOP/s", "of", "GB/s", "of");
  double sum = 0;
  for (const OpTime& t : m.ops) {
    const double ms = t.ms / m.watched_steps, tflops = ratio(t.work.flops, t.ms) * 1e-9,
                 gb = ratio(t.work.bytes, t.ms) * 1e-6;
    sum += ms;
    fmt::print("{:<26} {:<24} {:>6.0f} {:>9.3f} {:>5.1f}% {:>9} {:>5} {:>8.0f} {:>4.0f}%\n", t.work.kind, t.work.shape,
               static_cast<double>(t.calls) / m.watched_steps, ms, 100 * ms / m.watched_ms,
               tflops > 0 ? fmt::format("{:.4g}", tflops) : "",
               tflops > 0 ? fmt::format("{:.0f}%", 100 * ratio(tflops, m.ceilings.tflops)) : "", gb,
               100 * ratio(gb, m.ceilings.gb_per_sec));
  }
  fmt::print("{:<26} {:<24} {:>6} {:>9.3f} {:>5.1f}%\n", "between ops", "", "", m.watched_ms - sum,
             100 * (m.watched_ms - sum) / m.watched_ms);
}

void print(const Measured& m) {
  fmt::print("{} {}, {:.2f}M parameters, {} on {}\n", m.config.model.arch, m.attention, m.parameters / 1e6, m.dtype,
             m.device);
  fmt::print("ceilings measured here: {:.4g} TFLOP/s (product), {:.0f} GB/s (copy, read + write)\n\n",
             m.ceilings.tflops, m.ceilings.gb_per_sec);
  print_ops(m);
  fmt::print(
      "\n(A step of {:.2f} ms with every op timed; operations of products and attention by formula, bytes that "
      "have to be moved at the least.)\n\n",
      m.watched_ms);
  fmt::print("step: {:.2f} ms of {:.0f} tokens ({} of {}, nothing else timed): {:.0f} tokens/s\n", m.step_ms, m.tokens,
             m.turn > 1 ? "mean" : "median", m.steps, m.tokens / m.step_ms * 1000);
  const auto line = [&](const char* name, double flops) {
    const double tflops = m.tflops(flops);
    fmt::print("{}: {:.4g} GFLOP a token, {:.4g} TFLOP/s, {:.1f} % of the measured product", name, flops * 1e-9, tflops,
               100 * ratio(tflops, m.ceilings.tflops));
    if (m.ceilings.card_tflops > 0)
      fmt::print(", MFU {:.1f} % of the card's stated {:.0f}", 100 * tflops / m.ceilings.card_tflops,
                 m.ceilings.card_tflops);
    fmt::print("\n");
  };
  line("6N + 12LCT", m.convention_flops);
  line("exact (causal pairs alone, SFA's products on uniform supports)", m.exact_flops);
  fmt::print("memory: {:.2f} GB planned", static_cast<double>(m.planned_bytes) / 1e9);
  if (m.card_used_bytes > 0)
    fmt::print(", {:.2f} GB of the card in use (everything on it)", static_cast<double>(m.card_used_bytes) / 1e9);
  fmt::print("\n");
}

void bench(const Options& o) {
  const Measured m = measure(o);
  if (o.json)
    fmt::print("{}\n", as_json(m).dump(2));
  else
    print(m);
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
