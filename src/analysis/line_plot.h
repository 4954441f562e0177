// A line chart as an SVG text: a logarithmic axis of lengths, a linear axis from zero, a legend beside it.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace sfa {

struct PlotLine {
  std::string label;
  std::vector<std::pair<double, double>> points;  // x > 0, ascending; y >= 0
};

struct LinePlot {
  std::string title, x_label, y_label;
  std::vector<PlotLine> lines;

  /// Throws Error when no line has a point.
  [[nodiscard]] std::string svg() const;
};

}  // namespace sfa
