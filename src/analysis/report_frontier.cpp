// Loss against bytes of the KV cache: every variant as it was trained, and again with its cache in 8 bits where
// `sfa eval perplexity --kv-cache int8 --save` measured what that costs.
#include <fmt/format.h>

#include <algorithm>

#include "analysis/html_plot.h"
#include "analysis/html_table.h"
#include "analysis/report.h"
#include "core/progress.h"

namespace sfa {
namespace {

struct Point {
  std::string label, loss_from, bytes_from;
  double bytes = 0, loss = 0;
  std::size_t colour = 0;
  std::optional<double> added;  // by the cache in 8 bits
};

std::optional<double> kept_loss(const ReportRun& run, const char* name) {
  const auto it = run.results.find(name);
  if (it == run.results.end() || !it->second.is_object()) return std::nullopt;
  const auto loss = it->second.find("loss");
  return loss != it->second.end() && loss->is_number() ? std::optional(loss->get<double>()) : std::nullopt;
}

// Mean over the runs that were evaluated both ways, on the same tokens.
std::optional<double> added_by_int8(const ReportData& data, const ReportGroup& g) {
  double sum = 0, count = 0;
  for (const std::size_t r : g.runs) {
    const ReportRun& run = data.runs[r];
    const auto full = kept_loss(run, "perplexity"), eight = kept_loss(run, "perplexity_int8");
    if (!full || !eight ||
        run.results.at("perplexity").value("tokens", 0) != run.results.at("perplexity_int8").value("tokens", 1))
      continue;
    sum += *eight - *full;
    count += 1;
  }
  return count > 0 ? std::optional(sum / count) : std::nullopt;
}

// A variant of other seeds than the first stands where its gap over the seeds of both puts it: seeds differ by more
// than variants do.
std::pair<double, std::string> loss_of(const ReportData& data, const ReportGroup& g) {
  const ReportGroup& first = data.groups.front();
  if (first.loss && g.gap_seeds && g.seed_pairs < std::max(g.runs.size(), first.runs.size()))
    return {*first.loss + g.gap_seeds->value,
            fmt::format("the first variant's mean, plus the gap over {} seed(s) of both", g.seed_pairs)};
  return {*g.loss, fmt::format("mean of val/loss, newest line, of {} run(s)' metrics.jsonl", g.runs.size())};
}

std::vector<Point> points_of(const ReportData& data) {
  std::vector<Point> all;
  for (std::size_t i = 0; i < data.groups.size(); ++i) {
    const ReportGroup& g = data.groups[i];
    const RunSummary& run = data.runs[g.runs.front()].summary;
    if (!g.loss) continue;
    const std::string config = (run.folder / "config.yaml").generic_string();
    const auto [loss, losses] = loss_of(data, g);
    all.push_back({g.label, losses, "sfa flops of " + config, run.cost.kv_bytes_per_token, loss, i, {}});
    const auto added = added_by_int8(data, g);
    if (!added || run.config.model.attention.int8_cache()) continue;
    Config eight = run.config;
    eight.model.attention.as_cached = "int8";
    const ModelCost cost = model_cost(eight, run.config.data.seq_len, run.dtype == "bf16" ? DType::bf16 : DType::f32);
    all.push_back({g.label + " int8 cache", losses + ", plus what 8 bits add",
                   "sfa flops of " + config + " with model.attention.kv_cache=int8", cost.kv_bytes_per_token,
                   loss + *added, i, added});
  }
  return all;
}

// No other has as few bytes and less loss, or fewer bytes and as little loss.
bool on_frontier(const std::vector<Point>& all, const Point& p) {
  return std::none_of(all.begin(), all.end(), [&](const Point& o) {
    return o.bytes <= p.bytes && o.loss <= p.loss && (o.bytes < p.bytes || o.loss < p.loss);
  });
}

HtmlPlot plot_of(const ReportData& data, const std::vector<Point>& all) {
  HtmlPlot plot;
  plot.title = "Loss against KV bytes";
  plot.x_label = "KV bytes a token, all layers";
  plot.y_label = "validation loss, nats a token";
  plot.log_x = plot.wide = true;
  HtmlSeries frontier{"the frontier", {}, 0, true, true};
  for (const Point& p : all)
    if (on_frontier(all, p)) frontier.points.emplace_back(p.bytes, p.loss);
  std::sort(frontier.points.begin(), frontier.points.end());
  plot.series.push_back(std::move(frontier));
  for (const Point& p : all) plot.series.push_back({p.label, {{p.bytes, p.loss}}, p.colour, false, false, true});
  // The single seeds, small.
  for (std::size_t g = 0; g < data.groups.size(); ++g)
    for (const std::size_t r : data.groups[g].runs) {
      const RunSummary& run = data.runs[r].summary;
      if (run.val_loss && data.groups[g].runs.size() > 1)
        plot.series.push_back({fmt::format("{}, seed {}", data.groups[g].label, run.config.seed),
                               {{run.cost.kv_bytes_per_token, *run.val_loss}},
                               g,
                               true});
    }
  return plot;
}

}  // namespace

std::string report_frontier(const ReportData& data) {
  std::vector<Point> all = points_of(data);
  if (all.size() < 2) return "";
  const HtmlPlot plot = plot_of(data, all);
  const double base = all.front().bytes, loss = all.front().loss;
  HtmlTable t;
  t.caption = "By bytes; the first variant is " + all.front().label;
  t.columns = {"variant", "KV bytes/token", "KV to first", "loss", "to first", "added by 8 bits", "on the frontier"};
  std::stable_sort(all.begin(), all.end(), [](const Point& a, const Point& b) { return a.bytes < b.bytes; });
  for (const Point& p : all)
    t.rows.push_back(
        {text_cell(p.label), derived_cell(grouped(static_cast<std::int64_t>(p.bytes)), p.bytes_from),
         derived_cell(fmt::format("{:.3f}", p.bytes / base), "bytes over those of the first variant"),
         derived_cell(fmt::format("{:.4f}", p.loss), p.loss_from),
         derived_cell(fmt::format("{:+.4f}", p.loss - loss), "loss minus that of the first variant"),
         p.added ? derived_cell(fmt::format("{:+.5f}", *p.added),
                                "loss of eval/perplexity_int8.json less that of eval/perplexity.json, mean over runs")
                 : text_cell(""),
         text_cell(on_frontier(all, p) ? "yes" : "")});
  return "<section><h2>Frontier: loss against bytes of the cache</h2>\n<div class=\"charts\">" + plot.svg() +
         "</div>\n" + t.html() +
         "<p class=\"note\">On the frontier: no other variant has as few bytes and a lower loss. A variant of other "
         "seeds than the first stands at the first's mean plus its gap over the seeds of both. 8 bits: keys and values "
         "of "
         "dense attention, values of SFA, with a scale a token and head.</p></section>\n";
}

}  // namespace sfa
