// Charts for an HTML page, as inline SVG whose colours are the page's CSS variables (--ink, --grid, --series-1 ... -8),
// so that they follow its light and dark themes and print.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace sfa {

struct HtmlSeries {
  std::string label;
  std::vector<std::pair<double, double>> points;
  std::size_t colour = 0;  // index of the colour; series of one variant share it
  bool line = true;        // points joined; otherwise marks alone
  bool dashed = false;
  bool named = false;  // the label stands beside the last point
};

struct HtmlPlot {
  std::string title, x_label, y_label;
  bool log_x = false, log_y = false;
  bool wide = false;  // as wide as the page: for many names
  std::vector<HtmlSeries> series;

  /// An <svg> element, or a sentence when no series has a point. Points that a logarithm can't show are left out.
  [[nodiscard]] std::string svg() const;
};

/// A mark with an interval a row, around a line at zero: gaps to a baseline.
struct HtmlGap {
  std::string label;
  double value = 0, low = 0, high = 0;
  std::optional<double> paper;  // a second mark
  std::size_t colour = 0;
};
std::string gap_chart(const std::string& title, const std::string& x_label, const std::vector<HtmlGap>& gaps);

/// Text with the characters that HTML gives a meaning to written out.
std::string html_escaped(const std::string& text);

}  // namespace sfa
