// Latency against length: what `sfa bench attention --json` measured, what scripts/bench/attention_vs_cudnn.py timed
// beside it, and what the paper prints.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "analysis/html_plot.h"
#include "analysis/html_table.h"
#include "analysis/report.h"
#include "core/error.h"

namespace sfa {
namespace {
using nlohmann::json;

struct Line {
  std::string label;
  std::vector<std::pair<double, double>> points, paper;
};

std::optional<double> number_of(const json& object, const std::string& key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number() ? std::optional(it->get<double>()) : std::nullopt;
}

// Table 9's figure for a row of the same shape.
std::optional<double> paper_ms(const json& row) {
  if (row.value("op", "") != "forward" || row.value("batch", 0) * row.value("heads", 0) != 64) return std::nullopt;
  const bool sfa = row.value("type", "") == "sfa";
  return paper_latency(row.value("d", 0), sfa ? row.value("k", 0) : 0, row.value("n", 0));
}

std::string label_of(const json& row) {
  const std::string type = row.value("type", "");
  std::string label = type;
  if (type == "sfa") label += fmt::format(" k={}", row.value("k", 0));
  if (row.value("selection", "") == "topk_2of4") label += " 2of4";
  if (row.value("selection", "") == "topk_pairs") label += " pairs";
  if (row.value("kv_cache", "") == "int8") label += " int8 cache";
  return label + fmt::format(" d={}", row.value("d", 0));
}

// Times of other programs on the shape of a row, by name; those that could not serve it are missing.
std::map<std::string, double> rivals_of(const json& row) {
  std::map<std::string, double> out;
  const auto it = row.find("rivals_ms");
  if (it == row.end() || !it->is_object()) return out;
  for (const auto& [name, ms] : it->items())
    if (ms.is_number()) out[name] = ms.get<double>();
  return out;
}

Line& line_of(std::vector<Line>& lines, const std::string& label) {
  auto at = std::find_if(lines.begin(), lines.end(), [&](const Line& l) { return l.label == label; });
  if (at == lines.end()) at = lines.insert(lines.end(), {label, {}, {}});
  return *at;
}

// What is read of a row has the type that the benchmark writes.
bool well_formed(const json& row) {
  if (!row.is_object()) return false;
  for (const char* key : {"op", "type", "selection", "kv_cache"})
    if (row.contains(key) && !row[key].is_string()) return false;
  for (const char* key : {"batch", "heads", "d", "k", "n"})
    if (row.contains(key) && !row[key].is_number_integer()) return false;
  return true;
}

/// One file, checked.
struct Measured {
  std::string file, device, op;
  json rows;
  std::set<std::string> rivals;

  explicit Measured(const std::string& path) : file(path) {
    std::ifstream in(path);
    require(in.good() && std::filesystem::is_regular_file(path), "--latency: {} can't be read", path);
    const json whole = json::parse(in, nullptr, false);
    require(whole.is_object() && whole.contains("rows") && whole["rows"].is_array() && !whole["rows"].empty() &&
                std::all_of(whole["rows"].begin(), whole["rows"].end(), well_formed) &&
                (!whole.contains("device") || whole["device"].is_string()),
            "--latency: {} is no file of `sfa bench attention --json`", path);
    rows = whole["rows"];
    device = whole.value("device", "?");
    op = rows[0].value("op", "");
    for (std::size_t i = 0; i < rows.size(); ++i) {
      require(number_of(rows[i], "ms") && number_of(rows[i], "n"), "--latency: {}: row {} has no ms or n", path, i);
      for (const auto& [name, ms] : rivals_of(rows[i])) rivals.insert(name);
    }
  }
};

// The chart of one head size with its legend.
std::string chart(const Measured& m, int d) {
  std::vector<Line> lines;
  for (const json& row : m.rows) {
    if (row.value("d", 0) != d) continue;
    const double n = *number_of(row, "n"), ms = *number_of(row, "ms");
    line_of(lines, label_of(row)).points.emplace_back(n, ms);
    if (const auto paper = paper_ms(row); paper && row.value("selection", "") != "topk_2of4")
      line_of(lines, label_of(row)).paper.emplace_back(n, *paper);
    for (const auto& [name, time] : rivals_of(row)) {
      auto& points = line_of(lines, fmt::format("{} d={}", name, d)).points;
      if (points.empty() || points.back().first != n) points.emplace_back(n, time);
    }
  }
  HtmlPlot plot;
  plot.title = fmt::format("Attention {}, heads of {}, on {}", m.op, d, m.device);
  plot.x_label = m.op == "decode" ? "tokens in the cache" : "tokens";
  plot.y_label = "ms";
  plot.log_x = plot.log_y = true;
  std::string legend = "<div class=\"legend\">";
  for (std::size_t i = 0; i < lines.size(); ++i) {
    plot.series.push_back({lines[i].label, lines[i].points, i});
    if (!lines[i].paper.empty())
      plot.series.push_back({lines[i].label + ", the paper's on an A800", lines[i].paper, i, true, true});
    legend += fmt::format("<span style=\"--own:var(--series-{})\">{}</span>", i % 8 + 1, html_escaped(lines[i].label));
  }
  return "<div>" + legend + "</div>\n" + plot.svg() + "</div>\n";
}

std::string table(const Measured& m) {
  HtmlTable t;
  t.caption = m.file + ", " + m.device;
  t.columns = {"attention", "op", "tokens", "batch x heads", "ms", "our dense / it"};
  for (const std::string& name : m.rivals) {
    t.columns.push_back(name + " ms");
    t.columns.push_back(name + " / it");
  }
  t.columns.emplace_back("paper: ms");
  for (std::size_t i = 0; i < m.rows.size(); ++i) {
    const json& row = m.rows[i];
    const double ms = *number_of(row, "ms");
    const auto ratio = number_of(row, "ratio_to_dense");
    const auto own = rivals_of(row);
    std::vector<std::string> cells{
        text_cell(label_of(row)),
        text_cell(row.value("op", "")),
        text_cell(fmt::format("{:.0f}", *number_of(row, "n"))),
        text_cell(fmt::format("{} x {}", row.value("batch", 0), row.value("heads", 0))),
        traced_cell(fmt::format("{:.4g}", ms), m.file, fmt::format("rows/{}/ms", i), ms),
        ratio ? traced_cell(fmt::format("{:.2f}", *ratio), m.file, fmt::format("rows/{}/ratio_to_dense", i), *ratio)
              : text_cell("-")};
    for (const std::string& name : m.rivals) {
      const auto at = own.find(name);
      const bool there = at != own.end();
      cells.push_back(there ? traced_cell(fmt::format("{:.4g}", at->second), m.file,
                                          fmt::format("rows/{}/rivals_ms/{}", i, name), at->second)
                            : text_cell("-"));
      cells.push_back(there ? derived_cell(fmt::format("{:.2f}", at->second / ms), name + "'s time over this one's")
                            : text_cell("-"));
    }
    const auto paper = paper_ms(row);
    cells.push_back(paper ? fmt::format("<td class=\"paper\">{:.4g}</td>", *paper) : text_cell(""));
    t.rows.push_back(std::move(cells));
  }
  return t.html();
}

}  // namespace

std::string report_latency(const std::vector<std::string>& files) {
  std::string charts, tables;
  for (const std::string& file : files) {
    const Measured m(file);
    std::set<int> sizes;
    for (const json& row : m.rows) sizes.insert(row.value("d", 0));
    for (const int d : sizes) charts += chart(m, d);
    tables += table(m);
  }
  if (files.empty()) return "";
  return "<section><h2>Latency against length</h2>\n<div class=\"charts\">" + charts + "</div>\n" + tables +
         "<p class=\"note\">Dashed, and in italics: Table 9 of the paper, an A800, full attention, its dense kernel "
         "without tensor cores. Ours are causal. Above 1: this row is faster.</p></section>\n";
}

}  // namespace sfa
