// A variant of the attention table under test, and the packed rows of [q heads | k heads | v heads] that it reads.
#pragma once

#include "attention/attention_case.h"

namespace sfa::test {

// A variant under test with the oracle's view of the same inputs.
struct VariantCase {
  AttentionConfig config;
  AttentionDims dims;
  std::int64_t B, T;
  RangeCase ranges;

  [[nodiscard]] oracle::AttentionShape shape() const { return {B, T, T, dims.H, dims.G, dims.Dqk, dims.Dv}; }
  [[nodiscard]] bool sparse() const { return config.type == "sfa"; }
  [[nodiscard]] std::vector<float> queries(const std::vector<float>& q) const {
    return sparse() ? sparse_rows(q, dims.Dqk, config.k_q, config.selection == "topk_2of4", pairs_are_kept()) : q;
  }
  [[nodiscard]] std::vector<float> keys(const std::vector<float>& k) const {
    return sparse() ? sparse_rows(k, dims.Dqk, config.k_k, false, pairs_are_kept()) : k;
  }
  [[nodiscard]] bool pairs_are_kept() const { return config.selection == "topk_pairs"; }
  // Which pairs enter the softmax, given the selected rows.
  [[nodiscard]] Visible pairs(const std::vector<float>& q, const std::vector<float>& k) const {
    const Visible see = visible(ranges, T);
    if (config.zero_overlap != "mask") return see;
    return [see, q, k, s = shape()](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
      if (!see(b, h, i, j)) return false;
      bool common = i == j;
      for (std::int64_t d = 0; d < s.Dqk; ++d)
        common = common || (q[s.q(b, i, h) + static_cast<std::size_t>(d)] != 0 &&
                            k[s.k(b, j, h) + static_cast<std::size_t>(d)] != 0);
      return common;
    };
  }
};

inline std::vector<float> packed(const AttentionInputs& in, const AttentionDims& d) {
  std::vector<float> rows;
  const auto append = [&](const std::vector<float>& from, std::int64_t n, std::int64_t width) {
    rows.insert(rows.end(), from.begin() + n * width, from.begin() + (n + 1) * width);
  };
  for (std::int64_t n = 0; n < in.s.B * in.s.Tq; ++n) {
    append(in.q, n, d.H * d.Dqk);
    append(in.k, n, d.G * d.Dqk);
    append(in.v, n, d.G * d.Dv);
  }
  return rows;
}

template <class T>
std::vector<T> packed_gradient(const oracle::AttentionGradients<T>& g, const VariantCase& c) {
  std::vector<T> rows;
  const auto append = [&](const std::vector<T>& from, std::int64_t n, std::int64_t width) {
    rows.insert(rows.end(), from.begin() + n * width, from.begin() + (n + 1) * width);
  };
  for (std::int64_t n = 0; n < c.B * c.T; ++n) {
    append(g.q, n, c.dims.H * c.dims.Dqk);
    append(g.k, n, c.dims.G * c.dims.Dqk);
    append(g.v, n, c.dims.G * c.dims.Dv);
  }
  return rows;
}

template <class T>
std::vector<T> zero_outside(std::vector<T> gradient, const std::vector<float>& selected) {
  for (std::size_t i = 0; i < gradient.size(); ++i)
    if (selected[i] == 0.0f) gradient[i] = 0;
  return gradient;
}

}  // namespace sfa::test
