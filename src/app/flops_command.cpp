// sfa flops CONFIG [key=value...] [--context N,N...] [--convention paper|executed|causal]
// sfa flops --type sfa --d 128 --k 8 --batch-heads 64 --context N,N...
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "analysis/compare.h"
#include "analysis/operation_count.h"
#include "analysis/run_plan.h"
#include "app/commands.h"
#include "core/error.h"
#include "core/progress.h"

namespace sfa::app {
namespace {

using Json = nlohmann::ordered_json;

// Throws UsageError with a formatted sentence unless the command line is right.
template <class... Args>
void usage(bool right, fmt::format_string<Args...> format, Args&&... args) {
  if (!right) throw UsageError(fmt::format(format, std::forward<Args>(args)...));
}

struct FlopsOptions {
  std::string config, dtype = "bf16", convention = "causal", device = "cuda";
  std::vector<std::string> overrides;
  std::vector<std::int64_t> context;
  double overlap = -1;
  bool json = false;
  // Attention alone.
  std::string type, selection = "topk";
  std::int64_t d = 0, d_v = 0, k = 0, batch_heads = 1, window = 0;

  [[nodiscard]] Device kernels() const { return device == "cpu" ? Device::cpu : Device::cuda; }
  [[nodiscard]] std::optional<double> measured_overlap() const {
    return overlap < 0 ? std::nullopt : std::optional(overlap);
  }
};

// The cache of an attention beside the dense one's, for the widths that a stored key is said to have.
Json kv_ratios(const AttentionConfig& config, const AttentionDims& dims, double value_bytes) {
  const auto ratio = [&](double index, double pointer) {
    return kv_ratio(config, dims, {.value_bytes = value_bytes, .index_bytes = index, .pointer_bytes = pointer});
  };
  return {{"index_8bit", ratio(1, 0)},
          {"index_8bit_pointer_32bit", ratio(1, 4)},
          {"index_16bit", ratio(2, 0)},
          {"index_32bit", ratio(4, 0)}};
}

// The model of a configuration: attention under the convention, matrices as they are.
Json model_row(const FlopsOptions& o, const Config& config, std::int64_t T) {
  const DType dtype = o.dtype == "bf16" ? DType::bf16 : DType::f32;
  const Convention convention = convention_of(o.convention);
  const ModelCost c = model_cost(config, T, dtype);
  const std::int64_t L = config.model.num_hidden_layers;
  const double t = static_cast<double>(T), element = static_cast<double>(size_of(dtype));
  const AttentionDims dims = config.model.attention_dims();
  AttentionOperations a;
  double ratio = 0, kv = 0;
  const KeyFormat format = key_format(convention, element);
  for (std::int64_t l = 0; l < L; ++l) {
    const AttentionConfig layer = config.model.attention_of(l);
    const AttentionOperations own = count_attention({layer, dims, 1, o.kernels(), o.measured_overlap()}, T, convention);
    a.flops += own.flops;
    a.integer_ops += own.integer_ops;
    kv += static_cast<double>(dims.G) * kv_bytes(layer, dims, format);
    ratio += kv_ratio(layer, dims, format) / static_cast<double>(L);
  }
  const double attention = a.flops, matrices = (c.forward_flops_per_token - c.attention_flops_per_token) * t;
  Json row = {{"context", T},
              {"convention", o.convention},
              {"parameters", c.parameters},
              {"forward_flops_per_token", (matrices + attention) / t},
              {"backward_flops_per_token", nullptr},
              {"attention_flops_per_token", attention / t},
              {"attention_flops", attention},
              {"model_forward_flops", matrices + attention},
              {"step_flops_per_token", nullptr},
              {"integer_ops", a.integer_ops * (convention == Convention::paper ? static_cast<double>(dims.H) : 1)},
              {"kv_bytes_per_token", kv},
              {"kv_ratio", ratio}};
  if (convention == Convention::causal) {  // the paper counts no backward pass
    row["backward_flops_per_token"] = c.backward_flops_per_token;
    row["step_flops_per_token"] = (matrices + attention) / t + c.backward_flops_per_token;
  }
  return row;
}

// Heads alone: --batch-heads of them.
Json attention_row(const FlopsOptions& o, std::int64_t T) {
  AttentionCount count;
  count.config.type = o.type;
  count.config.k_q = count.config.k_k = static_cast<int>(o.k);
  count.config.window = o.window;
  count.config.selection = o.selection;
  count.dims = {.H = 1, .G = 1, .Dqk = o.d, .Dv = o.d_v == 0 ? o.d : o.d_v};
  count.batch = static_cast<double>(o.batch_heads);
  count.device = o.kernels();
  count.overlap = o.measured_overlap();
  const Convention convention = convention_of(o.convention);
  const AttentionOperations a = count_attention(count, T, convention);
  const double element = o.dtype == "bf16" ? 2 : 4;
  const KeyFormat format = key_format(convention, element);
  Json row = {{"context", T},
              {"type", o.type},
              {"d", o.d},
              {"d_v", count.dims.Dv},
              {"k", o.type == "sfa" ? Json(o.k) : Json(nullptr)},
              {"batch_heads", o.batch_heads},
              {"convention", o.convention},
              {"attention_flops", a.flops},
              {"integer_ops", a.integer_ops},
              {"kv_bytes_per_token_head", kv_bytes(count.config, count.dims, format)},
              {"kv_ratio", kv_ratio(count.config, count.dims, format)}};
  if (o.type == "sfa") row["kv_ratios"] = kv_ratios(count.config, count.dims, element);
  return row;
}

std::string optional_count(const Json& value, int digits) {
  return value.is_null() ? "-" : fmt::format("{:.{}g}", value.get<double>(), digits);
}

void print_model(const FlopsOptions& o, const Config& config, const Json& rows) {
  fmt::print("{} {}, {} parameters, values in {}, counted as {}\n", config.model.arch, attention_label(config.model),
             grouped(rows[0]["parameters"].get<std::int64_t>()), o.dtype, o.convention);
  fmt::print("{:>10}  {:>20}  {:>21}  {:>22}  {:>14}  {:>11}\n", "context", "forward FLOPs/token",
             "backward FLOPs/token", "attention FLOPs/token", "KV bytes/token", "KV to dense");
  for (const auto& row : rows)
    fmt::print("{:>10}  {:>20}  {:>21}  {:>22}  {:>14}  {:>11.3f}\n", row["context"].get<std::int64_t>(),
               optional_count(row["forward_flops_per_token"], 5), optional_count(row["backward_flops_per_token"], 5),
               optional_count(row["attention_flops_per_token"], 5),
               grouped(static_cast<std::int64_t>(row["kv_bytes_per_token"].get<double>())),
               row["kv_ratio"].get<double>());
}

void print_attention(const FlopsOptions& o, const Json& rows) {
  fmt::print("{}{} d={}, {} heads, values in {}, counted as {}\n", o.type,
             o.type == "sfa" ? fmt::format(" k={}", o.k) : "", o.d, o.batch_heads, o.dtype, o.convention);
  fmt::print("{:>10}  {:>16}  {:>16}  {:>11}\n", "context", "attention TFLOPs", "integer Mops", "KV to dense");
  for (const auto& row : rows)
    fmt::print("{:>10}  {:>16.2f}  {:>16.2f}  {:>11.3f}\n", row["context"].get<std::int64_t>(),
               row["attention_flops"].get<double>() * 1e-12, row["integer_ops"].get<double>() * 1e-6,
               row["kv_ratio"].get<double>());
}

void check_attention(const FlopsOptions& o) {
  usage(o.d >= 1, "--type needs --d, the features of a head");
  usage(o.type == "dense" || (o.k >= 1 && o.k <= o.d), "--type sfa needs --k, from 1 to --d = {}", o.d);
  usage(o.type == "sfa" || o.k == 0, "--k: only --type sfa selects features");
  usage(!o.context.empty(), "--type needs --context, the lengths in tokens");
  require(o.batch_heads >= 1, "--batch-heads: must be at least 1, got {}", o.batch_heads);
  require(o.d_v >= 0 && o.window >= 0, "--d-v and --window: must not be negative");
}

void flops(const FlopsOptions& o) {
  usage(o.config.empty() != o.type.empty(), "flops: needs a configuration, or --type for attention alone");
  for (const std::int64_t T : o.context) require(T >= 1, "--context: must be at least 1, got {}", T);
  Json out = Json::array();
  if (!o.type.empty()) {
    check_attention(o);
    for (const std::int64_t T : o.context) out.push_back(attention_row(o, T));
    if (!o.json) return print_attention(o, out);
  } else {
    Config config = load_config(o.config, o.overrides);
    take_vocabulary(config);
    std::vector<std::int64_t> lengths = o.context;
    if (lengths.empty()) lengths.push_back(config.data.seq_len);
    for (const std::int64_t T : lengths) out.push_back(model_row(o, config, T));
    if (!o.json) return print_model(o, config, out);
  }
  fmt::print("{}\n", out.dump(2));
}

}  // namespace

void add_flops_command(CLI::App& app) {
  auto o = std::make_shared<FlopsOptions>();
  CLI::App* command = app.add_subcommand("flops", "Work and cache of a model, or of attention alone, by formula");
  command->add_option("config", o->config, "the run's YAML file");
  command->add_option("overrides", o->overrides, "key.path=value");
  command->add_option("--context", o->context, "lengths in tokens, for example 1024,8192; default: data.seq_len")
      ->delimiter(',');
  command
      ->add_option("--convention", o->convention,
                   "causal: products over visible pairs; paper: as its Table 6, all pairs; executed: what kernels do")
      ->check(CLI::IsMember({"paper", "executed", "causal"}))
      ->capture_default_str();
  command->add_option("--overlap", o->overlap,
                      "features that a visible pair has in common, as `sfa analyze support` measures; default k k / d");
  command->add_option("--device", o->device, "executed: whose kernels, cuda or cpu")
      ->check(CLI::IsMember({"cuda", "cpu"}))
      ->capture_default_str();
  command->add_option("--dtype", o->dtype, "what the cache holds: fp32 or bf16")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command->add_option("--type", o->type, "attention alone: dense or sfa")->check(CLI::IsMember({"dense", "sfa"}));
  command->add_option("--d", o->d, "--type: features of a head");
  command->add_option("--d-v", o->d_v, "--type: features of a value head; default: --d");
  command->add_option("--k", o->k, "--type sfa: active features");
  command->add_option("--selection", o->selection, "--type sfa: topk or topk_2of4")
      ->check(CLI::IsMember({"topk", "topk_2of4"}))
      ->capture_default_str();
  command->add_option("--window", o->window, "--type: keys that a query sees; 0 = all")->capture_default_str();
  command->add_option("--batch-heads", o->batch_heads, "--type: heads times sequences")->capture_default_str();
  command->add_flag("--json", o->json, "print one JSON array, an object a length");
  command->callback([o] { flops(*o); });
}

}  // namespace sfa::app
