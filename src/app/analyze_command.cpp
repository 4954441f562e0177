// sfa analyze: what a trained model does inside.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "analysis/support_dump.h"
#include "app/commands.h"
#include "core/error.h"
#include "data/loader.h"
#include "eval/loaded_model.h"
#include "eval/saved_results.h"

namespace sfa::app {
namespace {

struct AnalyzeOptions {
  LoadOptions load;
  std::string data, split = "val", dump;
  std::int64_t tokens = 0;
  bool json = false, save = false;
};

/// What one layer's queries and keys have in common.
struct LayerSupport {
  double overlapping = 0;   // share of causal pairs with a common feature
  double mean_overlap = 0;  // common features a causal pair
  double uniform = 0;       // what independent, evenly used features would have in common
  double key_entropy = 0;   // of the features of keys, 1 = all alike; mean over heads
};

std::vector<float> to_floats(Context& ctx, const Tensor& t) {
  std::vector<std::uint16_t> half;
  std::vector<float> values(static_cast<std::size_t>(t.numel()));
  if (t.dtype == DType::f32) {
    ctx.copy(values.data(), Device::cpu, t.data, t.device, values.size() * 4);
    ctx.synchronize();
    return values;
  }
  require(t.dtype == DType::bf16, "internal error: {} where floats were expected", t);
  half.resize(values.size());
  ctx.copy(half.data(), Device::cpu, t.data, t.device, half.size() * 2);
  ctx.synchronize();
  std::transform(half.begin(), half.end(), values.begin(), bf16_value);
  return values;
}

/// Rows [T, heads, D] as attention multiplies them: expanded from their support, or the columns `from` on of packed
/// rows.
std::vector<float> rows_of(Context& ctx, const AttentionState& s, const Tensor& values, const Tensor& indices,
                           std::int64_t from, std::int64_t heads, std::int64_t D) {
  const std::int64_t T = s.qkv.dim(1), width = heads * D, k = indices.empty() ? 0 : indices.dim(3);
  std::vector<float> rows(static_cast<std::size_t>(T * width));
  if (k == 0) {
    const std::vector<float> packed = to_floats(ctx, s.qkv);
    for (std::int64_t t = 0; t < T; ++t)
      std::copy_n(packed.begin() + t * s.qkv.dim(2) + from, width, rows.begin() + t * width);
    return rows;
  }
  const std::vector<float> kept = to_floats(ctx, values);
  std::vector<std::uint8_t> features(kept.size());
  ctx.copy(features.data(), Device::cpu, indices.data, indices.device, features.size());
  ctx.synchronize();
  for (std::int64_t r = 0; r < T * heads; ++r)
    for (std::int64_t i = 0; i < k; ++i)
      rows[static_cast<std::size_t>(r * D + features[static_cast<std::size_t>(r * k + i)])] =
          kept[static_cast<std::size_t>(r * k + i)];
  return rows;
}

/// The supports of one head over T tokens, as the features' bits.
std::vector<std::vector<bool>> supports_of(const std::vector<float>& rows, std::int64_t T, std::int64_t heads,
                                           std::int64_t head, std::int64_t D) {
  std::vector<std::vector<bool>> all(static_cast<std::size_t>(T), std::vector<bool>(static_cast<std::size_t>(D)));
  for (std::int64_t t = 0; t < T; ++t)
    for (std::int64_t f = 0; f < D; ++f)
      all[static_cast<std::size_t>(t)][static_cast<std::size_t>(f)] =
          rows[static_cast<std::size_t>((t * heads + head) * D + f)] != 0.0f;
  return all;
}

/// Causal pairs are counted feature by feature: a list of keys for each, walked as the queries advance.
LayerSupport measure(const SupportDump& dump, std::size_t layer) {
  LayerSupport r;
  const std::int64_t T = dump.tokens, D = dump.head_dim;
  double pairs = 0, common = 0, overlapping = 0, active_q = 0, active_k = 0;
  for (std::int64_t h = 0; h < dump.heads; ++h) {
    const std::int64_t g = h / (dump.heads / dump.kv_heads);
    const auto q = supports_of(dump.q[layer], T, dump.heads, h, D),
               k = supports_of(dump.k[layer], T, dump.kv_heads, g, D);
    std::vector<std::vector<std::int64_t>> keys(static_cast<std::size_t>(D));
    std::vector<std::int64_t> seen(static_cast<std::size_t>(T), -1);
    for (std::int64_t i = 0; i < T; ++i) {
      for (std::int64_t f = 0; f < D; ++f)
        if (k[static_cast<std::size_t>(i)][static_cast<std::size_t>(f)]) keys[static_cast<std::size_t>(f)].push_back(i);
      for (std::int64_t f = 0; f < D; ++f) {
        if (!q[static_cast<std::size_t>(i)][static_cast<std::size_t>(f)]) continue;
        active_q += 1;
        for (const std::int64_t j : keys[static_cast<std::size_t>(f)]) {
          common += 1;
          overlapping += seen[static_cast<std::size_t>(j)] != i ? 1 : 0;
          seen[static_cast<std::size_t>(j)] = i;
        }
      }
      pairs += static_cast<double>(i + 1);
    }
    double entropy = 0, total = 0;
    for (const auto& list : keys) total += static_cast<double>(list.size());
    for (const auto& list : keys) {
      const double share = static_cast<double>(list.size()) / std::max(total, 1.0);
      if (share > 0) entropy -= share * std::log(share);
    }
    active_k += total;
    r.key_entropy += entropy / std::log(static_cast<double>(D)) / static_cast<double>(dump.heads);
  }
  const double rows = static_cast<double>(T * dump.heads);
  r.overlapping = overlapping / pairs;
  r.mean_overlap = common / pairs;
  r.uniform = active_q / rows * (active_k / rows) / static_cast<double>(D);
  return r;
}

SupportDump capture(LoadedModel& loaded, const AnalyzeOptions& o) {
  const Config& config = loaded.config();
  const std::int64_t T = o.tokens == 0 ? config.data.seq_len : o.tokens;
  require(T >= 1 && T <= config.model.max_position_embeddings, "--tokens: {}; the model has {} positions", T,
          config.model.max_position_embeddings);
  const Split split = o.split == "val" ? Split::val : o.split == "train" ? Split::train : Split::all;
  ValidationSet data({.paths = {o.data}, .split = split, .seq_len = static_cast<int>(T), .batch_size = 1});
  require(data.shards().vocab_size() <= config.model.vocab_size, "{}: has a vocabulary of {} ids, the model has {}",
          o.data, data.shards().vocab_size(), config.model.vocab_size);
  const Batch& first = data.batch(0);
  require(first.num_targets >= T, "{}: the split begins with {} tokens, {} are asked for", o.data, first.num_targets,
          T);

  const AttentionDims dims = config.model.attention_dims();
  SupportDump dump{.tokens = T, .heads = dims.H, .kv_heads = dims.G, .head_dim = dims.Dqk, .q = {}, .k = {}};
  Model& model = loaded.model();
  Context& ctx = loaded.context();
  ModelArenas arenas(model.device());
  plan_model(model, arenas, 1, T, false);
  Arena inputs("tokens", model.device());
  ModelInput batch;
  Tensor losses;
  for (int pass = 0; pass < 2; ++pass) {
    batch = {inputs.take(DType::i32, {1, T}), inputs.take(DType::i32, {1, T}), Tensor{}};
    losses = inputs.take(DType::f32, {T});
    if (pass == 0) inputs.bind();
  }
  for (const auto& [t, from] : {std::pair{batch.tokens, &first.tokens}, std::pair{batch.targets, &first.targets}})
    ctx.copy(t.data, t.device, from->data(), Device::cpu, from->size() * sizeof(std::int32_t));
  model.on_attention = [&](std::int64_t, const AttentionState& s) {
    dump.q.push_back(rows_of(ctx, s, s.q.values, s.q.indices, 0, dims.H, dims.Dqk));
    dump.k.push_back(rows_of(ctx, s, s.k.values, s.k.indices, dims.H * dims.Dqk, dims.G, dims.Dqk));
  };
  model.evaluate(ctx, arenas, batch, losses);
  ctx.synchronize();
  model.on_attention = nullptr;
  return dump;
}

void support(const AnalyzeOptions& o) {
  LoadedModel loaded(o.load);
  const SupportDump dump = capture(loaded, o);
  if (!o.dump.empty()) dump.write(o.dump);
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  if (!o.json)
    fmt::print("{:>5} {:>24} {:>13} {:>22} {:>12}\n", "layer", "pairs with a common one", "mean overlap",
               "independent, even use", "key entropy");
  for (std::size_t l = 0; l < dump.q.size(); ++l) {
    const LayerSupport s = measure(dump, l);
    out.push_back({{"layer", l},
                   {"overlapping_pairs", s.overlapping},
                   {"mean_overlap", s.mean_overlap},
                   {"mean_overlap_uniform", s.uniform},
                   {"key_entropy", s.key_entropy}});
    if (!o.json)
      fmt::print("{:>5} {:>23.1f}% {:>13.2f} {:>22.2f} {:>12.2f}\n", l, 100 * s.overlapping, s.mean_overlap, s.uniform,
                 s.key_entropy);
  }
  if (o.save) save_result(loaded.folder(), "support", out);
  if (o.json) fmt::print("{}\n", out.dump(2));
}

}  // namespace

void add_analyze_command(CLI::App& app) {
  CLI::App* analyze = app.add_subcommand("analyze", "Look into a trained model");
  analyze->require_subcommand(1);
  auto o = std::make_shared<AnalyzeOptions>();
  CLI::App* command = analyze->add_subcommand(
      "support", "Which features queries and keys share over one sequence, layer by layer; --dump keeps their rows");
  command->add_option("--checkpoint", o->load.path, "a checkpoint, or a run folder (its newest checkpoint)")
      ->required();
  command->add_option("--data", o->data, "token file or glob")->required();
  command->add_option("--split", o->split, "train, val or all")
      ->check(CLI::IsMember({"train", "val", "all"}))
      ->capture_default_str();
  command->add_option("--tokens", o->tokens, "length of the sequence; 0 = as trained")->capture_default_str();
  command->add_option("--dump", o->dump, "write queries and keys here (HDF5), for `sfa bench attention --supports`");
  command->add_option("--device", o->load.device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--set", o->load.overrides, "key.path=value over the saved configuration");
  command->add_flag("--json", o->json, "print one JSON array, an object a layer");
  command->add_flag("--save", o->save,
                    "keep the result in the run's folder, for `sfa compare --html`: eval/support.json");
  command->callback([o] { support(*o); });
}

}  // namespace sfa::app
