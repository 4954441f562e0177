// sfa bench attention: one layer's attention, timed over lengths, head sizes, types and k.
#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "analysis/attention_bench.h"
#include "analysis/line_plot.h"
#include "analysis/support_dump.h"
#include "app/bench_command.h"
#include "core/error.h"
#include "eval/loaded_model.h"

namespace sfa::app {
namespace {

struct BenchAttentionOptions {
  std::string op = "forward", device = "auto", impl = "auto", dtype = "auto", heads, supports = "random", json, plot;
  std::vector<std::string> types{"dense", "sfa"}, selections{"topk"}, caches{"full"}, n{"1024..4096"};
  std::vector<std::int64_t> d{64}, k{8};
  std::int64_t batch_tokens = 32768, batch = 0, window = 0, hidden = 0;
  int repetitions = 20, context_parallel = 1;
};

AttentionOp op_of(const std::string& name) {
  return name == "forward" ? AttentionOp::forward : name == "backward" ? AttentionOp::backward : AttentionOp::decode;
}

std::int64_t number(const std::string& text, const std::string& option) {
  std::size_t used = 0;
  std::int64_t value = 0;
  try {
    value = std::stoll(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used != text.size() || text.empty() || value < 1)
    throw UsageError(fmt::format("{}: '{}' is not a positive number", option, text));
  return value;
}

/// "1024", "1024..8192" (doubling), several of them.
std::vector<std::int64_t> lengths_of(const std::vector<std::string>& parts) {
  std::vector<std::int64_t> all;
  for (const std::string& part : parts) {
    const std::size_t dots = part.find("..");
    const std::int64_t first = number(part.substr(0, dots), "--n"),
                       last = dots == std::string::npos ? first : number(part.substr(dots + 2), "--n");
    if (last < first) throw UsageError(fmt::format("--n: {} runs backwards", part));
    for (std::int64_t n = first; n <= last; n *= 2) all.push_back(n);
  }
  return all;
}

/// "16" or "16/8"; empty: 12 heads of 64 features, 16 wider ones, as GPT-2 and Qwen3 have them.
AttentionDims dims_of(const std::string& heads, std::int64_t d) {
  AttentionDims dims{.H = d <= 64 ? 12 : 16, .G = d <= 64 ? 12 : 16, .Dqk = d, .Dv = d};
  if (heads.empty()) return dims;
  const std::size_t slash = heads.find('/');
  dims.H = number(heads.substr(0, slash), "--heads");
  dims.G = slash == std::string::npos ? dims.H : number(heads.substr(slash + 1), "--heads");
  if (dims.H % dims.G != 0)
    throw UsageError(fmt::format("--heads: {} query heads cannot share {} key/value heads evenly", dims.H, dims.G));
  return dims;
}

struct Row {
  AttentionCase c;
  AttentionTiming t;
  std::optional<double> dense_ms;  // our dense attention on the same shape
};

std::string label_of(const AttentionCase& c) {
  const char* cache = c.config.kv_cache == "int8" ? " int8" : "";
  if (c.config.type == "dense") return fmt::format("dense{} d={}", cache, c.dims.Dqk);
  const std::string& rule = c.config.selection;
  return fmt::format("sfa k={}{}{} d={}", c.config.k_q,
                     rule == "topk_2of4" ? " 2of4" : (rule == "topk_pairs" ? " pairs" : ""), cache, c.dims.Dqk);
}

/// What is timed on one shape: dense first, so that others can be set against it.
std::vector<AttentionConfig> variants(const BenchAttentionOptions& o, std::int64_t d) {
  std::vector<AttentionConfig> all;
  AttentionConfig config;
  config.impl = o.impl;
  config.window = o.window;
  const auto wants = [&](const char* type) { return std::find(o.types.begin(), o.types.end(), type) != o.types.end(); };
  const auto add = [&] {
    for (const std::string& cache : o.caches) {
      config.kv_cache = cache;
      all.push_back(config);
    }
  };
  if (wants("dense")) {
    config.type = "dense";
    if (o.impl == "posting_list") config.impl = "auto";  // SFA's alone; dense stays what it is compared with
    add();
  }
  if (!wants("sfa")) return all;
  config.type = "sfa";
  config.impl = o.impl;
  for (const std::int64_t k : o.k) {
    if (k > d / 2) continue;
    for (const std::string& selection : o.selections) {
      config.k_q = config.k_k = static_cast<int>(k);
      config.selection = selection;
      add();
    }
  }
  return all;
}

std::int64_t batch_of(const BenchAttentionOptions& o, std::int64_t n) {
  if (o.batch > 0) return o.batch;
  return std::max<std::int64_t>(1, o.op == "decode" ? o.batch_tokens * 32 / n : o.batch_tokens / n);
}

void print_header(const BenchAttentionOptions& o, const std::string& device) {
  fmt::print("{}, {}, {}\n", device, o.op,
             o.context_parallel > 1   ? fmt::format("the part of one of {} ranks", o.context_parallel)
             : o.hidden > 0           ? fmt::format("projection of {} features included", o.hidden)
             : o.supports == "random" ? "random rows"
                                      : "rows of " + o.supports);
  fmt::print("{:<22} {:>7} {:>4} {:>5} {:>10} {:>10} {:>9} {:>9} {:>8} {:>10} {:>11} {:>8}\n", "variant", "n", "B",
             "H/G", "ms", "selection", "TFLOP/s", "executed", "GB/s", "saved MiB", "scratch MiB", "to dense");
}

void print_row(const Row& r) {
  const AttentionCase& c = r.c;
  const double seconds = r.t.ms * 1e-3, mib = 1 << 20;
  fmt::print("{:<22} {:>7} {:>4} {:>5} {:>10.4f} {:>10.4f} {:>9.4g} {:>9.4g} {:>8.4g} {:>10.1f} {:>11.1f} {:>8}\n",
             label_of(c), c.n, c.B, fmt::format("{}/{}", c.dims.H, c.dims.G), r.t.ms, r.t.selection_ms,
             r.t.dense_flops / seconds * 1e-12, r.t.executed_flops / seconds * 1e-12, r.t.bytes / seconds * 1e-9,
             (c.op == AttentionOp::decode ? r.t.cache_bytes : r.t.saved_bytes) / mib, r.t.scratch_bytes / mib,
             r.dense_ms ? fmt::format("{:.3f}", *r.dense_ms / r.t.ms) : "");
  std::fflush(stdout);
}

nlohmann::ordered_json json_of(const BenchAttentionOptions& o, const Row& r) {
  const AttentionCase& c = r.c;
  const double seconds = r.t.ms * 1e-3;
  nlohmann::ordered_json out = {{"op", o.op},
                                {"type", c.config.type},
                                {"impl", c.config.impl},
                                {"selection", c.config.type == "sfa" ? c.config.selection : ""},
                                {"k", c.config.k_q},
                                {"kv_cache", c.config.kv_cache},
                                {"d", c.dims.Dqk},
                                {"n", c.n},
                                {"batch", c.B},
                                {"heads", c.dims.H},
                                {"kv_heads", c.dims.G},
                                {"supports", o.supports},
                                {"hidden", c.hidden},
                                {"context_parallel", c.context_parallel},
                                {"ms", r.t.ms},
                                {"projection_ms", r.t.projection_ms},
                                {"selection_ms", r.t.selection_ms},
                                {"repetitions", r.t.repetitions},
                                {"tflops_dense_equivalent", r.t.dense_flops / seconds * 1e-12},
                                {"tflops_executed", r.t.executed_flops / seconds * 1e-12},
                                {"gb_per_second", r.t.bytes / seconds * 1e-9},
                                {"saved_bytes", r.t.saved_bytes},
                                {"scratch_bytes", r.t.scratch_bytes},
                                {"cache_bytes", r.t.cache_bytes},
                                {"ratio_to_dense", nullptr}};
  if (r.dense_ms) out["ratio_to_dense"] = *r.dense_ms / r.t.ms;
  return out;
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  require(!file.fail(), "{}: can't be written", path);
}

void write_plot(const BenchAttentionOptions& o, const std::vector<Row>& rows, const std::string& device) {
  const bool decode = o.op == "decode";
  LinePlot plot{.title = fmt::format("attention {}, {}", o.op, device),
                .x_label = decode ? "keys in the cache" : "tokens a sequence (causal)",
                .y_label = decode ? "million keys a second, all sequences" : "TFLOP/s, as dense attention counts",
                .lines = {}};
  std::map<std::string, std::size_t> index;
  for (const Row& r : rows) {
    const auto [at, fresh] = index.try_emplace(label_of(r.c), plot.lines.size());
    if (fresh) plot.lines.push_back({at->first, {}});
    const double y = decode ? static_cast<double>(r.c.B * r.c.n) / r.t.ms * 1e-3 : r.t.dense_flops / r.t.ms * 1e-9;
    plot.lines[at->second].points.emplace_back(static_cast<double>(r.c.n), y);
  }
  write_text(o.plot, plot.svg());
}

void bench(const BenchAttentionOptions& o) {
  const std::vector<std::int64_t> lengths = lengths_of(o.n);
  Context ctx(choose_device(o.device));
  const DType dtype = ctx.on_cuda() && o.dtype != "fp32" ? DType::bf16 : DType::f32;
  require(ctx.on_cuda() || o.dtype != "bf16", "--dtype: bf16 is the GPU's; the CPU computes in fp32");
  std::optional<SupportDump> dump;
  if (o.supports != "random") dump = SupportDump::read(o.supports);
  const std::string device = ctx.device_name();
  print_header(o, device);
  std::vector<Row> rows;
  for (const std::int64_t d : o.d) {
    const AttentionDims dims = dims_of(o.heads, d);
    for (const std::int64_t n : lengths) {
      std::optional<double> dense_ms;
      for (const AttentionConfig& config : variants(o, d)) {
        Row row{.c = {.op = op_of(o.op),
                      .config = config,
                      .dims = dims,
                      .B = batch_of(o, n),
                      .n = n,
                      .dtype = dtype,
                      .supports = dump ? &*dump : nullptr,
                      .hidden = o.hidden,
                      .repetitions = o.repetitions,
                      .context_parallel = o.context_parallel},
                .t = {},
                .dense_ms = {}};
        row.t = time_attention(ctx, row.c);
        if (config.type == "dense" && !dense_ms) dense_ms = row.t.ms;
        row.dense_ms = dense_ms;
        print_row(row);
        rows.push_back(row);
      }
    }
  }
  if (!o.json.empty()) {
    nlohmann::ordered_json all = {{"device", device}, {"rows", nlohmann::ordered_json::array()}};
    for (const Row& r : rows) all["rows"].push_back(json_of(o, r));
    write_text(o.json, all.dump(2) + "\n");
  }
  if (!o.plot.empty()) write_plot(o, rows, device);
}

}  // namespace

void add_bench_attention(CLI::App& group) {
  auto o = std::make_shared<BenchAttentionOptions>();
  CLI::App* command = group.add_subcommand(
      "attention", "Time one layer's attention, selection included, beside our dense attention of the same shape");
  command->add_option("--op", o->op, "forward, backward or decode (one token a sequence after n cached ones)")
      ->check(CLI::IsMember({"forward", "backward", "decode"}))
      ->capture_default_str();
  command->add_option("--types", o->types, "dense, sfa")->delimiter(',')->check(CLI::IsMember({"dense", "sfa"}));
  command->add_option("--d", o->d, "features of a head, several by commas")->delimiter(',')->capture_default_str();
  command->add_option("--k", o->k, "active features, several by commas; those above d/2 are left out")
      ->delimiter(',')
      ->check(CLI::Range(1, 128))
      ->capture_default_str();
  command->add_option("--n", o->n, "lengths: 1024, 1024..131072 (doubling), several by commas")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--selection", o->selections, "topk, topk_2of4, topk_pairs")
      ->delimiter(',')
      ->check(CLI::IsMember({"topk", "topk_2of4", "topk_pairs"}));
  command->add_option("--kv-cache", o->caches, "decode: what the cache holds, as model.attention.kv_cache")
      ->delimiter(',')
      ->check(CLI::IsMember({"full", "int8"}));
  command->add_option("--impl", o->impl, "implementation, as model.attention.impl")->capture_default_str();
  command->add_option("--heads", o->heads, "query heads/key heads, as 16/8; default 12 of 64 features, 16 of more");
  command
      ->add_option("--batch-tokens", o->batch_tokens,
                   "tokens a batch: sequences are this over n, at least one (decode: 32 times as many cached tokens)")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--batch", o->batch, "sequences, instead of --batch-tokens")->check(CLI::PositiveNumber);
  command->add_option("--window", o->window, "keys a query sees; 0 = all before it")->check(CLI::NonNegativeNumber);
  command
      ->add_option("--hidden", o->hidden,
                   "forward: include the projection of so many features into the packed rows; 0 = without")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--context-parallel", o->context_parallel,
                   "forward, backward: what one of so many ranks that share the sequences computes, without the "
                   "exchange; ms and TFLOP/s are of its part")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--supports", o->supports, "random, or a file made by `sfa analyze support`")
      ->capture_default_str();
  command->add_option("--repetitions", o->repetitions, "timed calls at most; the median counts")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--device", o->device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--dtype", o->dtype, "auto, fp32 or bf16")
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}))
      ->capture_default_str();
  command->add_option("--json", o->json, "write all figures to this file");
  command->add_option("--plot", o->plot, "draw a chart into this file (SVG)");
  command->callback([o] { bench(*o); });
}

}  // namespace sfa::app
