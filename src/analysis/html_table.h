// Tables of a report. A number that a file holds says which file and where in it (data-file, data-key, data-value, and
// the cell's title); one that is computed says from what.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace sfa {

/// A `<td>`.
std::string text_cell(const std::string& text);
std::string traced_cell(const std::string& text, const std::filesystem::path& file, const std::string& key,
                        double value);
std::string derived_cell(const std::string& text, const std::string& from);
/// A cell shaded by `share` in [0, 1].
std::string shaded_cell(const std::string& text, double share, const std::filesystem::path& file,
                        const std::string& key, double value);

struct HtmlTable {
  std::string caption;
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;  // of cells

  [[nodiscard]] std::string html() const;
};

}  // namespace sfa
