#include "analysis/html_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace sfa {
namespace {

constexpr double kWidth = 640, kHeight = 360, kWideWidth = 1000, kWideHeight = 480;
constexpr double kLeft = 64, kRight = 16, kTop = 34, kBottom = 48;
constexpr std::size_t kColours = 8;

// One direction of a chart: where values lie between 0 and 1, and which are marked.
struct Axis {
  bool log = false;
  double low = 0, high = 1;
  std::vector<double> ticks;

  [[nodiscard]] bool shows(double v) const { return std::isfinite(v) && (!log || v > 0); }
  [[nodiscard]] double at(double v) const {
    const double span = log ? std::log(high / low) : high - low;
    return span > 0 ? (log ? std::log(v / low) : v - low) / span : 0.5;
  }
};

// 1, 2 or 5 times a power of ten, such that about five steps make `span`.
double nice_step(double span) {
  const double rough = span / 5, power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (rough <= factor * power) return factor * power;
  return 10 * power;
}

Axis axis_over(const std::vector<double>& values, bool log) {
  Axis a;
  a.log = log;
  std::vector<double> shown;
  for (const double v : values)
    if (a.shows(v)) shown.push_back(v);
  if (shown.empty()) return a;
  a.low = *std::min_element(shown.begin(), shown.end());
  a.high = *std::max_element(shown.begin(), shown.end());
  if (a.low == a.high) {
    a.low = log ? a.low / 2 : a.low - 0.5;
    a.high = log ? a.high * 2 : a.high + 0.5;
  }
  if (log) {
    const double step = a.high / a.low > 200 ? 10 : 2;
    for (double v = std::pow(step, std::floor(std::log(a.low) / std::log(step))); v <= a.high * 1.0001; v *= step)
      if (v >= a.low * 0.9999) a.ticks.push_back(v);
    if (a.ticks.size() < 3) {  // a span of less than a few powers
      const double even = nice_step(a.high - a.low);
      a.ticks.clear();
      for (double v = std::ceil(a.low / even) * even; v <= a.high; v += even) a.ticks.push_back(v);
    }
    const double margin = std::pow(a.high / a.low, 0.03);
    a.low /= margin;
    a.high *= margin;
    return a;
  }
  const double margin = 0.04 * (a.high - a.low), step = nice_step(a.high - a.low);
  a.low -= margin;
  a.high += margin;
  for (double v = std::ceil(a.low / step) * step; v <= a.high; v += step)
    a.ticks.push_back(std::fabs(v) < step * 1e-9 ? 0 : v);
  return a;
}

// 131072 -> "128k", 2.5e7 -> "25M"; small numbers as they are.
std::string tick_text(double v) {
  if (v >= 1024 && v < 1048576 && std::fmod(v, 1024) == 0) return fmt::format("{:.0f}k", v / 1024);  // a length
  for (const auto& [unit, name] : {std::pair{1e9, "G"}, {1e6, "M"}, {1e3, "k"}})
    if (std::fabs(v) >= unit) return fmt::format("{:.3g}{}", v / unit, name);
  return fmt::format("{:.4g}", v);
}

std::string colour_of(std::size_t index) {
  return fmt::format("var(--series-{})", index % kColours + 1);
}

std::string opening(const std::string& title, double width, double height) {
  return fmt::format(
      R"(<svg class="chart{}" viewBox="0 0 {} {}" role="img" aria-label="{}"><text class="title" x="{}" y="18">{}</text>)"
      "\n",
      width > kWidth ? " wide" : "", width, height, html_escaped(title), kLeft, html_escaped(title));
}

struct Frame {
  Axis x, y;
  double width = kWidth, height = kHeight;
  [[nodiscard]] double right() const { return width - kRight; }
  [[nodiscard]] double bottom() const { return height - kBottom; }
  [[nodiscard]] double px(double v) const { return kLeft + x.at(v) * (right() - kLeft); }
  [[nodiscard]] double py(double v) const { return kTop + (1 - y.at(v)) * (bottom() - kTop); }
};

std::string grid(const Frame& f, const HtmlPlot& plot) {
  std::string out;
  for (const double v : f.y.ticks)
    out += fmt::format(
        R"(<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/><text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>)"
        "\n",
        kLeft, f.right(), f.py(v), f.py(v), kLeft - 6, f.py(v) + 4, tick_text(v));
  for (const double v : f.x.ticks)
    out += fmt::format(
        R"(<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/><text class="tick" x="{0:.1f}" y="{3}" text-anchor="middle">{4}</text>)"
        "\n",
        f.px(v), kTop, f.bottom(), f.bottom() + 16, tick_text(v));
  out += fmt::format(R"(<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>)", (kLeft + f.right()) / 2,
                     f.height - 8, html_escaped(plot.x_label));
  out +=
      fmt::format(R"svg(<text class="label" transform="translate(14 {}) rotate(-90)" text-anchor="middle">{}</text>)svg"
                  "\n",
                  (kTop + f.bottom()) / 2, html_escaped(plot.y_label));
  return out;
}

std::string drawn(const HtmlSeries& s, const Frame& f) {
  std::string path, marks;
  for (const auto& [x, y] : s.points) {
    if (!f.x.shows(x) || !f.y.shows(y)) continue;
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", f.px(x), f.py(y));
    if (!s.line || s.points.size() < 40)
      marks +=
          fmt::format(R"(<circle cx="{:.1f}" cy="{:.1f}" r="{}" fill="{}"><title>{}: {:.6g}, {:.6g}</title></circle>)",
                      f.px(x), f.py(y), s.line ? 2.5 : 4.5, colour_of(s.colour), html_escaped(s.label), x, y);
  }
  std::string out = fmt::format("<g data-series=\"{}\">", html_escaped(s.label));
  if (s.line && s.points.size() > 1)
    out += fmt::format(R"(<path d="{}" fill="none" stroke="{}" stroke-width="1.8"{}/>)", path, colour_of(s.colour),
                       s.dashed ? R"( stroke-dasharray="5 4")" : "");
  return out + marks + "</g>\n";
}

/// Names near points, each in the nearest place where it covers no other name and no point, with a line to its point
/// when that is further off. A point that finds none has its name as a tooltip alone.
class Names {
 public:
  Names(const std::vector<HtmlSeries>& series, const Frame& f) : frame_(f) {
    for (const HtmlSeries& s : series) {
      std::vector<std::pair<double, double>> shown;
      for (const auto& [x, y] : s.points)
        if (f.x.shows(x) && f.y.shows(y)) shown.emplace_back(f.px(x), f.py(y));
      for (const auto& [x, y] : shown) taken_.push_back({x - 5, y - 5, 10, 10});
      if (!s.line) continue;
      for (std::size_t i = 1; i < shown.size(); ++i) keep_clear(shown[i - 1], shown[i]);
    }
  }
  std::string of(const HtmlSeries& s) {
    if (!s.named || s.points.empty()) return "";
    const double x = frame_.px(s.points.back().first), y = frame_.py(s.points.back().second),
                 width = 6.7 * static_cast<double>(s.label.size());
    // Beside it, then above and below, further and further.
    for (int row = 0; row <= 20; ++row)
      for (const double dy : {-7.0 - 14 * row, -7.0 + 14 * row})
        for (const double dx : {8.0, -8 - width, -width / 2})
          if (const Box b{x + dx, y + dy, width, 13}; (row > 0 || dx != -width / 2) && free(b)) {
            taken_.push_back(b);
            return (row > 1 ? leader(x, y, b) : "") +
                   fmt::format(R"(<text class="tick" x="{:.1f}" y="{:.1f}">{}</text>)"
                               "\n",
                               b.x, b.y + 11, html_escaped(s.label));
          }
    return "";
  }

 private:
  struct Box {
    double x, y, width, height;
  };
  void keep_clear(const std::pair<double, double>& from, const std::pair<double, double>& to) {
    const double dx = to.first - from.first, dy = to.second - from.second;
    const int steps = static_cast<int>(std::hypot(dx, dy) / 4) + 1;
    for (int i = 0; i <= steps; ++i)
      taken_.push_back({from.first + dx * i / steps, from.second + dy * i / steps, 1, 1});
  }
  static std::string leader(double x, double y, const Box& b) {
    return fmt::format(R"(<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>)", x, y,
                       std::clamp(x, b.x, b.x + b.width), b.y > y ? b.y + 2 : b.y + b.height);
  }
  [[nodiscard]] bool free(const Box& b) const {
    return b.x > kLeft && b.x + b.width < frame_.width && b.y > kTop && b.y + b.height < frame_.bottom() &&
           std::none_of(taken_.begin(), taken_.end(), [&](const Box& t) {
             return b.x < t.x + t.width && t.x < b.x + b.width && b.y < t.y + t.height && t.y < b.y + b.height;
           });
  }
  const Frame& frame_;
  std::vector<Box> taken_;
};

}  // namespace

std::string html_escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

std::string HtmlPlot::svg() const {
  std::vector<double> xs, ys;
  for (const HtmlSeries& s : series)
    for (const auto& [x, y] : s.points) {
      xs.push_back(x);
      ys.push_back(y);
    }
  if (xs.empty()) return "<p class=\"note\">" + html_escaped(title) + ": nothing to plot.</p>\n";
  const Frame f{axis_over(xs, log_x), axis_over(ys, log_y), wide ? kWideWidth : kWidth, wide ? kWideHeight : kHeight};
  std::string out = opening(title, f.width, f.height) + grid(f, *this);
  for (const HtmlSeries& s : series) out += drawn(s, f);
  Names names(series, f);
  for (const HtmlSeries& s : series) out += names.of(s);
  return out + "</svg>\n";
}

std::string gap_chart(const std::string& title, const std::string& x_label, const std::vector<HtmlGap>& gaps) {
  if (gaps.empty()) return "";
  constexpr double kRow = 26, kNames = 210;
  std::vector<double> values{0};
  for (const HtmlGap& g : gaps) {
    values.insert(values.end(), {g.value, g.low, g.high});
    if (g.paper) values.push_back(*g.paper);
  }
  const Axis axis = axis_over(values, false);
  const double height = kTop + kRow * static_cast<double>(gaps.size()) + kBottom, bottom = height - kBottom;
  const auto px = [&](double v) { return kNames + axis.at(v) * (kWidth - kNames - kRight); };
  std::string out = opening(title, kWidth, height);
  for (const double v : axis.ticks)
    out += fmt::format(
        R"(<line class="{0}" x1="{1:.1f}" x2="{1:.1f}" y1="{2}" y2="{3}"/><text class="tick" x="{1:.1f}" y="{4}" text-anchor="middle">{5}</text>)"
        "\n",
        v == 0 ? "zero" : "grid", px(v), kTop, bottom, bottom + 16, tick_text(v));
  for (std::size_t i = 0; i < gaps.size(); ++i) {
    const HtmlGap& g = gaps[i];
    const double y = kTop + kRow * (static_cast<double>(i) + 0.5);
    out += fmt::format(
        R"(<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text><line x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="2"/><circle cx="{:.1f}" cy="{:.1f}" r="4.5" fill="{}"><title>{:+.4f} [{:+.4f}, {:+.4f}]</title></circle>)"
        "\n",
        kNames - 8, y + 4, html_escaped(g.label), px(g.low), px(g.high), y, y, colour_of(g.colour), px(g.value), y,
        colour_of(g.colour), g.value, g.low, g.high);
    if (g.paper)
      out += fmt::format(
          R"(<path class="paper" d="M{0:.1f} {1:.1f}l6 6l-6 6l-6 -6z"><title>the paper: {2:+.4f}</title></path>)"
          "\n",
          px(*g.paper), y - 6, *g.paper);
  }
  out += fmt::format(R"(<text class="label" x="{}" y="{}" text-anchor="middle">{}</text></svg>)"
                     "\n",
                     (kNames + kWidth - kRight) / 2, height - 8, html_escaped(x_label));
  return out;
}

}  // namespace sfa
