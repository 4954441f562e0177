#include "analysis/html_table.h"

#include <fmt/format.h>

#include "analysis/html_plot.h"

namespace sfa {
namespace {

std::string source_attributes(const std::filesystem::path& file, const std::string& key, double value) {
  const std::string path = html_escaped(file.generic_string()), where = html_escaped(key);
  return fmt::format(R"(data-file="{0}" data-key="{1}" data-value="{2:.17g}" title="{0}: {1}")", path, where, value);
}

}  // namespace

std::string text_cell(const std::string& text) {
  return "<td>" + html_escaped(text) + "</td>";
}

std::string traced_cell(const std::string& text, const std::filesystem::path& file, const std::string& key,
                        double value) {
  return fmt::format(R"(<td class="n" {}>{}</td>)", source_attributes(file, key, value), html_escaped(text));
}

std::string derived_cell(const std::string& text, const std::string& from) {
  return fmt::format(R"(<td class="n" data-from="{0}" title="{0}">{1}</td>)", html_escaped(from), html_escaped(text));
}

std::string shaded_cell(const std::string& text, double share, const std::filesystem::path& file,
                        const std::string& key, double value) {
  return fmt::format(R"(<td class="heat" style="--share:{:.0f}%" {}>{}</td>)", 100 * share,
                     source_attributes(file, key, value), html_escaped(text));
}

std::string HtmlTable::html() const {
  std::string out = "<div class=\"wide\"><table>";
  if (!caption.empty()) out += "<caption>" + html_escaped(caption) + "</caption>";
  out += "<thead><tr>";
  for (const std::string& c : columns) out += "<th>" + html_escaped(c) + "</th>";
  out += "</tr></thead>\n<tbody>\n";
  for (const auto& row : rows) {
    out += "<tr>";
    for (const std::string& cell : row) out += cell;
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

}  // namespace sfa
