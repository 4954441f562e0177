#include "analysis/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "analysis/compare.h"
#include "analysis/html_plot.h"
#include "analysis/html_table.h"
#include "core/build_config.h"
#include "core/progress.h"

namespace sfa {
namespace {

constexpr const char* kStyle = R"css(
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --soft: #59636e; --grid: #dfe3e8; --shade: #f4f6f8; --heat: #2f6fb3;
  --series-1: #1b1f24; --series-2: #0072b2; --series-3: #d55e00; --series-4: #009e73; --series-5: #b3589a; --series-6: #b88700; --series-7: #3f9bd0; --series-8: #8c6d1f; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6eaee; --soft: #9aa5b1; --grid: #313943; --shade: #1c2229; --heat: #3f7fc4;
  --series-1: #e6eaee; --series-2: #4aa8e0; --series-3: #f08a4b; --series-4: #3cc79a; --series-5: #d98cc4; --series-6: #e0b03f; --series-7: #86c9f2; --series-8: #c8ab5d; } }
@media print { :root { color-scheme: light; --paper: #ffffff; --ink: #000000; --soft: #444444; --grid: #cccccc; --shade: #ffffff; --heat: #9bb9da;
  --series-1: #000000; --series-2: #0072b2; --series-3: #d55e00; --series-4: #009e73; --series-5: #b3589a; --series-6: #b88700; --series-7: #3f9bd0; --series-8: #8c6d1f; }
  section { break-inside: avoid; } body { margin: 0; max-width: none; font-size: 11px; } .wide { overflow: visible; } table { font-size: .62rem; } th, td { padding: .15rem .3rem; } }
body { margin: 2rem auto; max-width: 88rem; padding: 0 1rem; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--grid); padding-bottom: .2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .86rem; margin: .6rem 0; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .28rem .38rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th { background: var(--shade); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td.n, td.heat { font-variant-numeric: tabular-nums; } td.paper { color: var(--soft); font-style: italic; }
td.heat { background: color-mix(in srgb, var(--heat) var(--share), var(--paper)); text-align: center; print-color-adjust: exact; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(34rem, 1fr)); gap: 1rem; }
svg.chart { width: 100%; max-width: 46rem; height: auto; background: var(--paper); }
svg.wide { max-width: 70rem; grid-column: 1 / -1; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .title { font-size: 13px; font-weight: 600; } svg .tick { fill: var(--soft); font-size: 11px; } svg .label { fill: var(--soft); }
svg .grid { stroke: var(--grid); } svg .zero { stroke: var(--ink); } svg .paper { fill: none; stroke: var(--soft); stroke-width: 1.6; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; font-size: .86rem; margin: .4rem 0; }
.legend span::before { content: ""; display: inline-block; width: 1.4em; height: .28em; margin-right: .5em; vertical-align: middle; background: var(--own); print-color-adjust: exact; }
.note, footer { color: var(--soft); font-size: .86rem; } code, pre { font-size: .82rem; } pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--shade); padding: .6rem; }
)css";

std::string number(const std::optional<double>& value, int digits) {
  return value ? fmt::format("{:.{}f}", *value, digits) : "-";
}

std::string interval_text(const std::optional<Interval>& i) {
  return i ? fmt::format("[{:+.4f}, {:+.4f}]", i->low, i->high) : "-";
}

std::string short_number(double value) {
  for (const auto& [unit, name] : {std::pair{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}})
    if (std::fabs(value) >= unit) return fmt::format("{:.3g}{}", value / unit, name);
  return fmt::format("{:.3g}", value);
}

double paper_gap(const PaperFigures& p) {
  return std::log(p.own.perplexity / p.dense.perplexity);
}

// Median over a group's runs, of what hardly differs between seeds.
double typical(const ReportData& data, const ReportGroup& g, double (*of)(const ReportRun&)) {
  std::vector<double> values;
  for (const std::size_t r : g.runs) values.push_back(of(data.runs[r]));
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<std::string> group_row(const ReportData& data, const ReportGroup& g) {
  const ReportRun& first = data.runs[g.runs.front()];
  const ModelCost& cost = first.summary.cost;
  const ModelCost& base = data.runs[data.groups.front().runs.front()].summary.cost;
  const bool own_baseline = &g == &data.groups.front();
  const std::string config = (first.folder() / "config.yaml").generic_string();
  const std::string losses = fmt::format("mean of val/loss, newest line, of {} run(s)' metrics.jsonl", g.runs.size());
  const std::optional<Interval>& gap = g.gap_seeds ? g.gap_seeds : g.gap_documents;
  const auto paper = [&](bool of_gap) {
    if (!g.paper) return text_cell("-");
    return fmt::format(
        R"(<td class="paper" title="arXiv 2603.22300, Table 1, {}">{}</td>)", html_escaped(g.paper->own.variant),
        of_gap ? fmt::format("{:+.3f}", paper_gap(*g.paper)) : fmt::format("{:.2f}", g.paper->own.perplexity));
  };
  return {
      text_cell(g.label),
      derived_cell(fmt::format("{}", g.runs.size()), "runs of this configuration, one a seed"),
      derived_cell(short_number(cost.parameters), "counted from " + config),
      derived_cell(number(g.loss, 4), losses),
      derived_cell(g.loss ? fmt::format("{:.3f}", std::exp(*g.loss)) : "-", "exp of the loss"),
      derived_cell(own_baseline ? "0"
                   : gap        ? fmt::format("{:+.4f}", gap->value)
                                : "-",
                   "loss minus that of the first variant, same seeds"),
      derived_cell(own_baseline ? "" : interval_text(g.gap_documents),
                   "paired bootstrap over the documents of eval/perplexity.json, 95 %"),
      derived_cell(own_baseline || g.seed_pairs < 2 ? "" : interval_text(g.gap_seeds), "Student's t over seeds, 95 %"),
      derived_cell(short_number(cost.attention_flops_per_token), "sfa flops, causal, of " + config),
      derived_cell(grouped(static_cast<std::int64_t>(cost.kv_bytes_per_token)), "sfa flops of " + config),
      derived_cell(fmt::format("{:.3f}", cost.kv_bytes_per_token / base.kv_bytes_per_token),
                   "bytes over those of the first variant"),
      derived_cell(short_number(typical(data, g, [](const ReportRun& r) { return r.tokens_per_second; })),
                   "median of tokens_per_sec in metrics.jsonl"),
      derived_cell(duration_text(typical(data, g, [](const ReportRun& r) { return r.summary.train_seconds; })),
                   "sum of step_ms in metrics.jsonl"),
      paper(false),
      paper(true)};
}

std::string group_section(const ReportData& data) {
  HtmlTable t;
  t.caption = "Variants; gaps in nats a token to the first one";
  t.columns = {"variant",     "runs",           "parameters", "val loss",         "perplexity",
               "gap",         "95 % documents", "95 % seeds", "attn FLOPs/token", "KV bytes/token",
               "KV to first", "tokens/s",       "time",       "paper: ppl",       "paper: gap"};
  for (const ReportGroup& g : data.groups) t.rows.push_back(group_row(data, g));
  if (std::none_of(data.groups.begin(), data.groups.end(), [](const ReportGroup& g) { return g.paper.has_value(); })) {
    t.columns.resize(t.columns.size() - 2);  // the paper has no row for any of them
    for (auto& row : t.rows) row.resize(t.columns.size());
  }
  std::vector<HtmlGap> gaps;
  for (std::size_t i = 1; i < data.groups.size(); ++i) {
    const ReportGroup& g = data.groups[i];
    const std::optional<Interval>& gap = g.seed_pairs > 1  ? g.gap_seeds
                                         : g.gap_documents ? g.gap_documents
                                                           : g.gap_seeds;
    if (!gap) continue;
    gaps.push_back(
        {g.label, gap->value, gap->low, gap->high, g.paper ? std::optional(paper_gap(*g.paper)) : std::nullopt, i});
  }
  return "<section><h2>Loss, work and cache</h2>\n" + t.html() +
         gap_chart("Gap to " + data.groups.front().label,
                   "nats a token; bars 95 %, diamonds: the paper's gap at its scale", gaps) +
         "</section>\n";
}

std::string run_section(const ReportData& data) {
  HtmlTable t;
  t.columns = {"run", "seed", "step", "tokens", "train loss", "val loss", "bits/byte", "time", "device"};
  for (const ReportRun& run : data.runs) {
    const RunSummary& s = run.summary;
    const auto metrics = run.folder() / "metrics.jsonl", config = run.folder() / "config.yaml";
    const auto cell = [&](const std::optional<double>& v, const char* key) {
      return v ? traced_cell(number(v, 4), metrics, key, *v) : text_cell("-");
    };
    t.rows.push_back(
        {text_cell(run.folder().generic_string()),
         traced_cell(fmt::format("{}", s.config.seed), config, "seed", static_cast<double>(s.config.seed)),
         traced_cell(fmt::format("{}/{}", s.step, s.config.train.max_steps), metrics, "step",
                     static_cast<double>(s.step)),
         derived_cell(short_number(static_cast<double>(s.tokens)), "step * data.batch_size * data.seq_len"),
         cell(s.train_loss, "train/loss"), cell(s.val_loss, "val/loss"), cell(s.bits_per_byte, "val/bits_per_byte"),
         derived_cell(duration_text(s.train_seconds), "sum of step_ms in metrics.jsonl"),
         text_cell(s.device + " " + s.dtype)});
  }
  return "<section><h2>Runs</h2>\n" + t.html() + "</section>\n";
}

std::string legend(const ReportData& data) {
  std::string out = "<div class=\"legend\">";
  for (std::size_t i = 0; i < data.groups.size(); ++i)
    out +=
        fmt::format("<span style=\"--own:var(--series-{})\">{}</span>", i % 8 + 1, html_escaped(data.groups[i].label));
  return out + "</div>\n";
}

// One chart of losses, training's dashed, validation's drawn through.
HtmlPlot loss_plot(const ReportData& data, bool against_time) {
  HtmlPlot plot;
  plot.title = against_time ? "Loss against time" : "Loss against tokens";
  plot.x_label = against_time ? "seconds of optimizer steps" : "tokens";
  plot.y_label = "nats a token";
  double lowest = INFINITY, first = 0;
  for (const ReportRun& r : data.runs)
    for (const CurvePoint& p : r.curve)
      if (p.val_loss) lowest = std::min(lowest, *p.val_loss);
  // What the beginning of training falls through would flatten the rest.
  first = std::isfinite(lowest) ? 2.2 * lowest : INFINITY;
  for (std::size_t g = 0; g < data.groups.size(); ++g)
    for (const std::size_t r : data.groups[g].runs) {
      const ReportRun& run = data.runs[r];
      const DataConfig& d = run.summary.config.data;
      HtmlSeries train{data.groups[g].label + ", training", {}, g, true, true}, val{data.groups[g].label, {}, g};
      for (const CurvePoint& p : run.curve) {
        const double x = against_time ? p.seconds : static_cast<double>(p.step * d.batch_size * d.seq_len);
        if (p.train_loss && *p.train_loss <= first) train.points.emplace_back(x, *p.train_loss);
        if (p.val_loss && *p.val_loss <= first) val.points.emplace_back(x, *p.val_loss);
      }
      plot.series.push_back(std::move(train));
      plot.series.push_back(std::move(val));
    }
  return plot;
}

HtmlPlot time_plot(const ReportData& data) {
  HtmlPlot plot;
  plot.title = "Loss against training time";
  plot.x_label = "seconds of optimizer steps";
  plot.y_label = "validation loss, nats a token";
  for (std::size_t g = 0; g < data.groups.size(); ++g) {
    HtmlSeries s{data.groups[g].label, {}, g, false};
    for (const std::size_t r : data.groups[g].runs) {
      const RunSummary& run = data.runs[r].summary;
      if (run.val_loss) s.points.emplace_back(run.train_seconds, *run.val_loss);
    }
    plot.series.push_back(std::move(s));
  }
  return plot;
}

std::string course_section(const ReportData& data) {
  return "<section><h2>Course of training</h2>\n" + legend(data) + "<div class=\"charts\">" +
         loss_plot(data, false).svg() + loss_plot(data, true).svg() + time_plot(data).svg() +
         "</div><p class=\"note\">Dashed: training. Drawn through: validation.</p></section>\n";
}

std::string sources_section(const ReportData& data, const ReportOptions& options) {
  std::string commands;
  for (const ReportRun& run : data.runs)
    commands += run.command.empty()
                    ? fmt::format("# {0}: its configuration is {0}/config.yaml\n", run.folder().generic_string())
                    : run.command + "\n";
  if (!options.command.empty()) commands += options.command + "\n";
  return "<section><h2>How it was made</h2>\n<pre>" + html_escaped(commands) +
         "</pre>\n<p class=\"note\">Read from each run folder: config.yaml, metrics.jsonl, run.json, and what "
         "evaluations left in "
         "eval/*.json. A cell's tooltip names its file and key, or what it is computed from. Figures of the paper "
         "(arXiv "
         "2603.22300) are its printed ones, at its scale, data and hardware; they are not ours.</p></section>\n";
}

}  // namespace

std::string html_report(const ReportData& data, const ReportOptions& options) {
  std::string devices;
  for (const ReportRun& run : data.runs)
    if (devices.find(run.summary.device) == std::string::npos)
      devices += (devices.empty() ? "" : ", ") + run.summary.device;
  std::string page =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>Runs compared</title><style>";
  page += kStyle;
  page += fmt::format("</style></head><body>\n<h1>{}</h1>\n", data.runs.empty() ? "Attention timed" : "Runs compared");
  if (!data.runs.empty()) {
    page += fmt::format("<p class=\"note\">{} run(s) of {} variant(s), held against {}; on {}; sfa {}.</p>\n",
                        data.runs.size(), data.groups.size(), html_escaped(data.groups.front().label),
                        html_escaped(devices), kVersion);
    page += group_section(data) + report_frontier(data) + course_section(data);
    page += run_section(data) + report_tasks(data) + report_needles(data) + report_supports(data);
  }
  page += report_latency(options.latency);
  page += sources_section(data, options);
  return page + "</body></html>\n";
}

}  // namespace sfa
