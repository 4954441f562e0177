#include "analysis/paper_figures.h"

#include <array>

namespace sfa {
namespace {

struct Size {
  std::int64_t layers, hidden;
  std::array<PaperRow, 3> rows;  // dense, short, SFA
  int k;
};

// Table 1. Where it contradicts Table 10 (SFA's ARC-c on the 124M model, 7.39 there and 13.41 here, which its mean
// needs) the other figure is taken.
const std::array<Size, 3>& sizes() {
  static const std::array<Size, 3> all{{{12,
                                         768,
                                         {{{"Dense (full)", 17.29, 56.34, 22.78, 28.35, 14.32, 19.61},
                                           {"Dense (d=32)", 20.88, 51.30, 19.39, 25.72, 12.47, 14.26},
                                           {"SFA (k=8)", 18.27, 54.92, 21.03, 28.41, 13.41, 19.26}}},
                                         8},
                                        {24,
                                         1024,
                                         {{{"Dense (full)", 15.03, 59.79, 24.74, 30.19, 15.78, 22.04},
                                           {"Dense (d=32)", 19.89, 55.17, 19.96, 28.15, 11.83, 18.43},
                                           {"SFA (k=8)", 16.78, 58.02, 23.83, 30.22, 13.66, 22.13}}},
                                         8},
                                        {28,
                                         1024,
                                         {{{"Dense (full)", 4.66, 62.47, 34.82, 45.41, 20.35, 33.95},
                                           {"Dense (d=64)", 6.03, 58.43, 31.27, 41.58, 15.83, 28.29},
                                           {"SFA (k=16)", 4.81, 61.73, 34.05, 45.62, 19.27, 34.03}}},
                                         16}}};
  return all;
}

struct LatencyRow {
  std::int64_t d, k;
  std::array<double, 6> ms;  // at kLatencyLengths
};
constexpr std::array<std::int64_t, 6> kLatencyLengths{1024, 4096, 8192, 16384, 32768, 65536};
constexpr std::array<LatencyRow, 9> kTable9{{{128, 0, {2.102, 28.052, 112.878, 449.607, 1981.917, 7879.334}},
                                             {128, 32, {2.166, 31.006, 120.576, 465.684, 1802.029, 7101.954}},
                                             {128, 16, {1.557, 17.937, 70.616, 279.722, 1108.962, 4412.015}},
                                             {128, 8, {0.918, 13.174, 54.249, 215.367, 777.152, 3323.529}},
                                             {128, 4, {0.671, 10.077, 40.091, 157.876, 579.754, 2576.927}},
                                             {64, 0, {0.773, 13.507, 50.618, 202.556, 801.497, 3137.779}},
                                             {64, 16, {0.896, 12.514, 39.414, 195.531, 779.193, 2963.938}},
                                             {64, 8, {0.589, 8.137, 32.004, 126.992, 504.226, 2014.140}},
                                             {64, 4, {0.407, 5.414, 21.065, 83.118, 328.828, 1311.588}}}};

}  // namespace

std::optional<double> paper_latency(std::int64_t d, std::int64_t k, std::int64_t N) {
  for (const LatencyRow& row : kTable9)
    for (std::size_t i = 0; i < kLatencyLengths.size(); ++i)
      if (row.d == d && row.k == k && kLatencyLengths[i] == N) return row.ms[i];
  return std::nullopt;
}

std::optional<PaperFigures> paper_figures(const ModelConfig& model) {
  const AttentionConfig& a = model.attention;
  const AttentionDims d = model.attention_dims();
  for (const Size& size : sizes()) {
    const bool gpt2 = size.layers != 28;
    const std::int64_t width = gpt2 ? 64 : 128;
    if (size.layers != model.num_hidden_layers || size.hidden != model.hidden_size || (model.arch == "gpt2") != gpt2 ||
        a.window > 0 || a.score_scale > 0 || (gpt2 && d.G != d.H))
      continue;
    if (a.type == "dense" && d.Dqk == width && d.Dv == width) return PaperFigures{size.rows[0], size.rows[0]};
    if (a.type == "dense" && d.Dqk == width / 2 && d.Dv == width / 2) return PaperFigures{size.rows[1], size.rows[0]};
    if (a.type == "sfa" && a.k_q == size.k && a.k_k == size.k && d.Dqk == width && d.Dv == width &&
        model.k_by_layer.empty() && a.selection == "topk" && a.zero_overlap == "score")
      return PaperFigures{size.rows[2], size.rows[0]};
  }
  return std::nullopt;
}

}  // namespace sfa
