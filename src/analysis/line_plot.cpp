#include "analysis/line_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <set>

#include "core/error.h"

namespace sfa {
namespace {

constexpr double kWidth = 900, kHeight = 480, kLeft = 70, kRight = 250, kTop = 44, kBottom = 56;
constexpr double kPlotWidth = kWidth - kLeft - kRight, kPlotHeight = kHeight - kTop - kBottom;
// Distinct for most kinds of colour vision (Okabe and Ito); lines beyond the eighth are dashed.
constexpr std::array<const char*, 8> kColours{"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                              "#e69f00", "#56b4e9", "#000000", "#8c6d1f"};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  return out;
}

/// 1, 2 or 5 times a power of ten, such that about five steps reach `top`.
double nice_step(double top) {
  const double rough = top / 5, power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (rough <= factor * power) return factor * power;
  return 10 * power;
}

/// 1024 -> 1k, 131072 -> 128k, 1000 -> 1000.
std::string length_text(double x) {
  const auto n = static_cast<long long>(std::llround(x));
  if (n >= 1048576 && n % 1048576 == 0) return fmt::format("{}M", n / 1048576);
  return n >= 1024 && n % 1024 == 0 ? fmt::format("{}k", n / 1024) : fmt::format("{}", n);
}

struct Scale {
  double low, high, top, step;
  [[nodiscard]] double x(double value) const {
    const double span = std::log2(high / low);
    return kLeft + (span > 0 ? std::log2(value / low) / span : 0.5) * kPlotWidth;
  }
  [[nodiscard]] double y(double value) const { return kTop + (1 - value / top) * kPlotHeight; }
};

Scale scale_of(const std::vector<PlotLine>& lines) {
  Scale s{INFINITY, 0, 0, 0};
  for (const PlotLine& line : lines)
    for (const auto& [x, y] : line.points) {
      require(x > 0 && y >= 0 && std::isfinite(x) && std::isfinite(y),
              "internal error: a plot's points have x > 0 and y >= 0, not ({}, {})", x, y);
      s.low = std::min(s.low, x);
      s.high = std::max(s.high, x);
      s.top = std::max(s.top, y);
    }
  require(s.high > 0, "there is nothing to plot");
  s.step = nice_step(s.top > 0 ? s.top : 1);
  s.top = std::max(std::ceil(s.top / s.step * 1.02), 1.0) * s.step;
  return s;
}

using Out = std::back_insert_iterator<std::string>;

void draw_axes(Out out, const LinePlot& plot, const Scale& s) {
  std::set<double> lengths;
  for (const PlotLine& line : plot.lines)
    for (const auto& point : line.points) lengths.insert(point.first);
  for (int i = 0; i * s.step <= s.top * 1.0001; ++i) {
    const double value = i * s.step, y = s.y(value);
    fmt::format_to(out,
                   R"(<line x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}" stroke="{}"/>)"
                   "\n",
                   kLeft, y, kLeft + kPlotWidth, y, i == 0 ? "#444" : "#ddd");
    fmt::format_to(out,
                   R"(<text x="{}" y="{:.1f}" text-anchor="end">{:g}</text>)"
                   "\n",
                   kLeft - 8, y + 4, value);
  }
  for (const double n : lengths) {
    fmt::format_to(out,
                   R"(<line x1="{0:.1f}" y1="{1}" x2="{0:.1f}" y2="{2}" stroke="#444"/>)"
                   "\n",
                   s.x(n), kTop + kPlotHeight, kTop + kPlotHeight + 5);
    fmt::format_to(out,
                   R"(<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>)"
                   "\n",
                   s.x(n), kTop + kPlotHeight + 20, length_text(n));
  }
  fmt::format_to(out,
                 R"(<text x="{}" y="{}" text-anchor="middle">{}</text>)"
                 "\n",
                 kLeft + kPlotWidth / 2, kHeight - 14, escaped(plot.x_label));
  fmt::format_to(out,
                 R"svg(<text transform="translate(18 {}) rotate(-90)" text-anchor="middle">{}</text>)svg"
                 "\n",
                 kTop + kPlotHeight / 2, escaped(plot.y_label));
}

void draw_line(Out out, const PlotLine& line, std::size_t index, const Scale& s) {
  const char* colour = kColours[index % kColours.size()];
  const std::string dash =
      index >= kColours.size() ? fmt::format(R"( stroke-dasharray="{} 4")", 3 * (index / kColours.size())) : "";
  std::string path;
  for (const auto& [x, y] : line.points)
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : " L", s.x(x), s.y(y));
  fmt::format_to(out,
                 R"(<path d="{}" fill="none" stroke="{}" stroke-width="2"{}/>)"
                 "\n",
                 path, colour, dash);
  for (const auto& [x, y] : line.points)
    fmt::format_to(out,
                   R"(<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>)"
                   "\n",
                   s.x(x), s.y(y), colour);
  const double top = kTop + 10 + 18 * static_cast<double>(index), left = kLeft + kPlotWidth + 16;
  fmt::format_to(out,
                 R"(<line x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}" stroke="{}" stroke-width="2"{}/>)"
                 "\n",
                 left, top, left + 22, top, colour, dash);
  fmt::format_to(out,
                 R"(<text x="{}" y="{:.1f}">{}</text>)"
                 "\n",
                 left + 28, top + 4, escaped(line.label));
}

}  // namespace

std::string LinePlot::svg() const {
  const Scale s = scale_of(lines);
  const double height = std::max(kHeight, kTop + 20 + 18 * static_cast<double>(lines.size()));
  std::string text;
  const Out out = std::back_inserter(text);
  fmt::format_to(out,
                 R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" )"
                 R"(font-family="sans-serif" font-size="12">)"
                 "\n"
                 R"(<rect width="{0}" height="{1}" fill="white"/>)"
                 "\n",
                 kWidth, height);
  fmt::format_to(out,
                 R"(<text x="{}" y="24" font-size="15">{}</text>)"
                 "\n",
                 kLeft, escaped(title));
  draw_axes(out, *this, s);
  for (std::size_t i = 0; i < lines.size(); ++i) draw_line(out, lines[i], i, s);
  return text + "</svg>\n";
}

}  // namespace sfa
