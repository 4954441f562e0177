// The parts of a report that show evaluations: zero-shot tasks, needles, supports.
#include <fmt/format.h>

#include <algorithm>

#include "analysis/html_plot.h"
#include "analysis/html_table.h"
#include "analysis/report.h"

namespace sfa {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

std::optional<double> number_at(const json& object, const char* key) {
  if (!object.is_object()) return std::nullopt;
  const auto it = object.find(key);
  return it != object.end() && it->is_number() ? std::optional(it->get<double>()) : std::nullopt;
}

// The kept result of a run, or null.
const json* result_of(const ReportRun& run, const std::string& name) {
  const auto it = run.results.find(name);
  return it == run.results.end() ? nullptr : &it->second;
}

fs::path file_of(const ReportRun& run, const std::string& name) {
  return run.folder() / "eval" / (name + ".json");
}

struct TaskColumn {
  const char *task, *key, *title;
  double PaperRow::*paper;  // or null
  bool percent;
};
constexpr TaskColumn kTasks[] = {{"piqa", "acc", "PIQA acc", &PaperRow::piqa, true},
                                 {"piqa", "acc_norm", "acc_norm", nullptr, true},
                                 {"lambada_openai", "acc", "LAMBADA acc", &PaperRow::lambada, true},
                                 {"lambada_openai", "perplexity", "ppl", nullptr, false},
                                 {"arc_easy", "acc", "ARC-e acc", &PaperRow::arc_easy, true},
                                 {"arc_easy", "acc_norm", "acc_norm", nullptr, true},
                                 {"arc_challenge", "acc", "ARC-c acc", &PaperRow::arc_challenge, true},
                                 {"arc_challenge", "acc_norm", "acc_norm", nullptr, true},
                                 {"hellaswag", "acc", "HellaSwag acc", &PaperRow::hellaswag, true},
                                 {"hellaswag", "acc_norm", "acc_norm", nullptr, true}};

std::string task_cell(const ReportRun& run, const TaskColumn& c) {
  const json* result = result_of(run, c.task);
  const auto value = result == nullptr ? std::nullopt : number_at(*result, c.key);
  if (!value) return text_cell("-");
  std::string text = c.percent ? fmt::format("{:.2f}", 100 * *value) : fmt::format("{:.1f}", *value);
  const auto error = number_at(*result, (std::string(c.key) + "_stderr").c_str());
  if (error) text += fmt::format(" \u00b1 {:.2f}", 100 * *error);
  return traced_cell(text, file_of(run, c.task), c.key, *value);
}

// Accuracies of one needle task of one run, depths down and lengths across.
std::string needle_table(const ReportRun& run, const std::string& name, const json& result) {
  HtmlTable t;
  const auto cells = result.find("cells");
  if (cells == result.end() || !cells->is_array()) return "";
  t.caption = run.folder().generic_string() + ": " + name + ", accuracy in %";
  t.columns = {"depth"};
  std::vector<double> lengths, depths;
  const auto note = [](std::vector<double>& list, const std::optional<double>& value) {
    if (value && std::find(list.begin(), list.end(), *value) == list.end()) list.push_back(*value);
  };
  for (const json& c : *cells) {
    note(lengths, number_at(c, "length"));
    note(depths, number_at(c, "depth"));
  }
  for (const double l : lengths) t.columns.push_back(fmt::format("{:.0f}", l));
  for (std::size_t d = 0; d < depths.size(); ++d) {
    std::vector<std::string> row{text_cell(fmt::format("{:.0f} %", 100 * depths[d]))};
    for (std::size_t l = 0; l < lengths.size(); ++l) {
      const std::size_t at = l * depths.size() + d;
      const auto accuracy = at < cells->size() ? number_at((*cells)[at], "accuracy") : std::nullopt;
      row.push_back(accuracy ? shaded_cell(fmt::format("{:.0f}", 100 * *accuracy), *accuracy, file_of(run, name),
                                           fmt::format("cells/{}/accuracy", at), *accuracy)
                             : text_cell("-"));
    }
    t.rows.push_back(std::move(row));
  }
  return t.html();
}

}  // namespace

std::string report_tasks(const ReportData& data) {
  HtmlTable t;
  t.columns = {"run"};
  for (const TaskColumn& c : kTasks) t.columns.emplace_back(c.title);
  for (const ReportGroup& g : data.groups) {
    for (const std::size_t r : g.runs) {
      const ReportRun& run = data.runs[r];
      if (std::none_of(std::begin(kTasks), std::end(kTasks),
                       [&](const TaskColumn& c) { return result_of(run, c.task) != nullptr; }))
        continue;
      std::vector<std::string> row{text_cell(run.folder().generic_string())};
      for (const TaskColumn& c : kTasks) row.push_back(task_cell(run, c));
      t.rows.push_back(std::move(row));
    }
    if (!g.paper || t.rows.empty()) continue;
    std::vector<std::string> row{"<td class=\"paper\">the paper's " + html_escaped(g.paper->own.variant) + "</td>"};
    for (const TaskColumn& c : kTasks)
      row.push_back(c.paper == nullptr ? text_cell("")
                                       : fmt::format("<td class=\"paper\">{:.2f}</td>", g.paper->own.*c.paper));
    t.rows.push_back(std::move(row));
  }
  if (t.rows.empty()) return "";
  return "<section><h2>Zero-shot tasks</h2>\n" + t.html() +
         "<p class=\"note\">Accuracies in %, by the rules of lm-evaluation-harness. The paper does not say how it "
         "scored; its figures lie "
         "below chance in places, so compare gaps, not values.</p></section>\n";
}

std::string report_needles(const ReportData& data) {
  std::string tables;
  for (const ReportRun& run : data.runs)
    for (const auto& [name, result] : run.results)
      if (name.rfind("niah", 0) == 0 || name == "passkey") tables += needle_table(run, name, result);
  return tables.empty() ? "" : "<section><h2>Needles in a haystack</h2>\n" + tables + "</section>\n";
}

std::string report_supports(const ReportData& data) {
  std::string tables;
  for (const ReportRun& run : data.runs) {
    const json* layers = result_of(run, "support");
    if (layers == nullptr || !layers->is_array()) continue;
    HtmlTable t;
    t.caption = run.folder().generic_string();
    t.columns = {"layer", "pairs with a common feature", "mean overlap", "uniform supports", "entropy of K's features"};
    for (std::size_t i = 0; i < layers->size(); ++i) {
      std::vector<std::string> row{text_cell(fmt::format("{}", i))};
      for (const char* key : {"overlapping_pairs", "mean_overlap", "mean_overlap_uniform", "key_entropy"}) {
        const auto value = number_at((*layers)[i], key);
        row.push_back(value ? traced_cell(fmt::format("{:.3f}", *value), file_of(run, "support"),
                                          fmt::format("{}/{}", i, key), *value)
                            : text_cell("-"));
      }
      t.rows.push_back(std::move(row));
    }
    tables += t.html();
  }
  return tables.empty() ? "" : "<section><h2>Supports</h2>\n" + tables + "</section>\n";
}

}  // namespace sfa
