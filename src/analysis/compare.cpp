#include "analysis/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/progress.h"

namespace sfa {
namespace {

// 131072 -> "131 k", 2.4e6 -> "2.4 M".
std::string short_count(double value) {
  constexpr const char* kUnits[] = {"", "k", "M", "G", "T"};
  std::size_t unit = 0;
  while (std::fabs(value) >= 999.95 && unit + 1 < std::size(kUnits)) {
    value /= 1000.0;
    ++unit;
  }
  if (unit == 0) return fmt::format("{:.0f}", value);
  return value < 99.95 ? fmt::format("{:.1f}{}", value, kUnits[unit]) : fmt::format("{:.0f}{}", value, kUnits[unit]);
}

std::string optional_number(const std::optional<double>& value, int digits) {
  return value ? fmt::format("{:.{}f}", *value, digits) : "-";
}

using Row = std::vector<std::string>;

Row row_of(const RunSummary& r) {
  const std::optional<double> perplexity = r.val_loss ? std::optional(std::exp(*r.val_loss)) : std::nullopt;
  return {r.folder.generic_string(),
          attention_label(r.config.model),
          short_count(r.cost.parameters),
          fmt::format("{}/{}", r.step, r.config.train.max_steps),
          optional_number(r.val_loss, 4),
          optional_number(perplexity, 3),
          optional_number(r.bits_per_byte, 4),
          short_count(r.cost.attention_flops_per_token),
          grouped(static_cast<std::int64_t>(r.cost.kv_bytes_per_token)),
          duration_text(r.train_seconds)};
}

/// With `seeds`, those are named.
std::string difference(const RunSummary& first, const RunSummary& r, bool seeds) {
  const auto name = [&](const RunSummary& run) {
    return attention_label(run.config.model) + (seeds ? fmt::format(" seed {}", run.config.seed) : "");
  };
  std::string out = fmt::format("{} against {}:", name(r), name(first));
  if (r.config.train.loss_mask != first.config.train.loss_mask)
    out += " losses of other tokens (train.loss_mask),";
  else if (r.val_loss && first.val_loss)
    out += fmt::format(" loss {:+.4f},", *r.val_loss - *first.val_loss);
  const auto ratio = [&](const char* what, double a, double b) {
    if (b > 0) out += fmt::format(" {} x{:.2f},", what, a / b);
  };
  ratio("attention FLOPs", r.cost.attention_flops_per_token, first.cost.attention_flops_per_token);
  ratio("KV bytes", r.cost.kv_bytes_per_token, first.cost.kv_bytes_per_token);
  ratio("training time", r.train_seconds, first.train_seconds);
  out.back() = '\n';
  return out;
}

// What a run is held against: the run of the first's attention and of its own seed, or the first.
const RunSummary& baseline_of(const std::vector<RunSummary>& runs, std::size_t i) {
  const std::string label = attention_label(runs.front().config.model);
  for (std::size_t b = 0; b < runs.size(); ++b)
    if (b != i && runs[b].config.seed == runs[i].config.seed && attention_label(runs[b].config.model) == label)
      return runs[b];
  return runs.front();
}

// "16,3x8,12": runs of equal k are counted.
std::string layers_label(const std::vector<std::int64_t>& k) {
  std::string out;
  for (std::size_t l = 0, same = 0; l < k.size(); l += same) {
    for (same = 1; l + same < k.size() && k[l + same] == k[l];) ++same;
    out += (out.empty() ? "" : ",") + (same > 1 ? fmt::format("{}x{}", same, k[l]) : fmt::format("{}", k[l]));
  }
  return out;
}

}  // namespace

std::string attention_label(const ModelConfig& model) {
  const AttentionConfig& a = model.attention;
  std::string label = a.type;
  if (a.type == "sfa") {
    if (!model.k_by_layer.empty())
      label += fmt::format(" k={}", layers_label(model.k_by_layer));
    else
      label += a.k_q == a.k_k ? fmt::format(" k={}", a.k_q) : fmt::format(" k_q={} k_k={}", a.k_q, a.k_k);
    if (a.k_from > 0) label += fmt::format(" from k={}", a.k_from);
    if (a.selection == "topk_2of4") label += " 2of4";
    if (a.selection == "topk_pairs") label += " pairs";
    if (a.zero_overlap == "mask") label += " mask";
    if (a.gate != "none") label += fmt::format(" gate={}", a.gate);
    if (a.balance > 0) label += fmt::format(" balance={:.4g}", a.balance);
  }
  if (model.arch == "gpt2" && model.head_dim * model.num_attention_heads != model.hidden_size)
    label += fmt::format(" d={}", model.head_dim);
  if (model.arch == "gpt2" && model.num_key_value_heads != model.num_attention_heads)
    label += fmt::format(" kv_heads={}", model.num_key_value_heads);
  if (model.qk_head_dim != model.head_dim) label += fmt::format(" d_qk={}", model.qk_head_dim);
  if (model.rope_projection != "none") label += fmt::format(" rope_projection={}", model.rope_projection);
  if (a.score_scale > 0) label += fmt::format(" score_scale={:.4g}", a.score_scale);
  if (a.window > 0) label += fmt::format(" window={}", a.window);
  if (a.int8_cache()) label += " int8 cache";
  return label;
}

std::string compare_table(const std::vector<RunSummary>& runs) {
  std::vector<Row> rows{{"run", "attention", "parameters", "steps", "val loss", "perplexity", "bits/byte",
                         "attn FLOPs/token", "KV bytes/token", "train time"}};
  for (const RunSummary& r : runs) rows.push_back(row_of(r));
  std::string out;
  for (const Row& row : rows) {
    for (std::size_t c = 0; c < row.size(); ++c) {
      std::size_t width = 0;
      for (const Row& other : rows) width = std::max(width, other[c].size());
      out += c < 2 ? fmt::format("{:<{}}", row[c], width) : fmt::format("{:>{}}", row[c], width);
      out += c + 1 < row.size() ? "  " : "\n";
    }
  }
  const bool seeds =
      std::ranges::any_of(runs, [&](const RunSummary& r) { return r.config.seed != runs.front().config.seed; });
  for (std::size_t i = 1; i < runs.size(); ++i)
    out += (i == 1 ? "\n" : "") + difference(baseline_of(runs, i), runs[i], seeds);
  return out;
}

nlohmann::ordered_json compare_json(const std::vector<RunSummary>& runs) {
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  const auto number = [](const std::optional<double>& value) {
    return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
  };
  for (const RunSummary& r : runs)
    out.push_back({{"run", r.folder.generic_string()},
                   {"attention", attention_label(r.config.model)},
                   {"device", r.device},
                   {"dtype", r.dtype},
                   {"parameters", r.cost.parameters},
                   {"step", r.step},
                   {"max_steps", r.config.train.max_steps},
                   {"tokens", r.tokens},
                   {"train_loss", number(r.train_loss)},
                   {"val_loss", number(r.val_loss)},
                   {"ppl", number(r.val_loss ? std::optional(std::exp(*r.val_loss)) : std::nullopt)},
                   {"bits_per_byte", number(r.bits_per_byte)},
                   {"attention_flops_per_token", r.cost.attention_flops_per_token},
                   {"forward_flops_per_token", r.cost.forward_flops_per_token},
                   {"kv_bytes_per_token", r.cost.kv_bytes_per_token},
                   {"train_seconds", r.train_seconds}});
  return out;
}

}  // namespace sfa
