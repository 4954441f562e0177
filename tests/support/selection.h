// Selection of features (ops/select/select.h) as its definition reads, by brute force.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace sfa::test {

// Does feature a come before feature b? Larger magnitude first, NaN above all, then the lower index.
inline bool comes_before(const std::vector<float>& x, std::int64_t a, std::int64_t b) {
  const auto magnitude = [&](std::int64_t i) {
    const float v = std::fabs(x[static_cast<std::size_t>(i)]);
    return std::isnan(v) ? std::numeric_limits<double>::infinity() : std::min<double>(v, 1e300);
  };
  const bool nan_a = std::isnan(x[static_cast<std::size_t>(a)]), nan_b = std::isnan(x[static_cast<std::size_t>(b)]);
  if (nan_a != nan_b) return nan_a;
  if (!nan_a && magnitude(a) != magnitude(b)) return magnitude(a) > magnitude(b);
  return a < b;
}

// The support of one row, ascending: k times the first in the order that is still allowed.
inline std::vector<std::uint8_t> selected_features(const std::vector<float>& x, std::int64_t k, bool two_of_four) {
  const std::int64_t D = static_cast<std::int64_t>(x.size());
  std::vector<bool> taken(x.size());
  for (std::int64_t n = 0; n < k; ++n) {
    std::int64_t best = -1;
    for (std::int64_t d = 0; d < D; ++d) {
      int in_group = 0;
      for (std::int64_t e = d / 4 * 4; e < std::min(D, d / 4 * 4 + 4); ++e)
        in_group += taken[static_cast<std::size_t>(e)];
      if (taken[static_cast<std::size_t>(d)] || (two_of_four && in_group == 2)) continue;
      if (best < 0 || comes_before(x, d, best)) best = d;
    }
    taken[static_cast<std::size_t>(best)] = true;
  }
  std::vector<std::uint8_t> out;
  for (std::int64_t d = 0; d < D; ++d)
    if (taken[static_cast<std::size_t>(d)]) out.push_back(static_cast<std::uint8_t>(d));
  return out;
}

// The same for whole pairs (i, i + D/2), k/2 of them by the sum of their squares. That is rounded to f32 as the
// contract says; of exact sums two that round alike are not a tie.
inline std::vector<std::uint8_t> selected_pairs(const std::vector<float>& x, std::int64_t k) {
  const std::size_t half = x.size() / 2;
  std::vector<float> norms;
  for (std::size_t i = 0; i < half; ++i) norms.push_back(std::fma(x[i], x[i], x[i + half] * x[i + half]));
  std::vector<std::uint8_t> out = selected_features(norms, k / 2, false);
  const std::size_t pairs = out.size();
  for (std::size_t i = 0; i < pairs; ++i) out.push_back(static_cast<std::uint8_t>(out[i] + half));
  return out;
}

/// Rows of D features with zeros outside their supports.
inline std::vector<float> sparse_rows(const std::vector<float>& x, std::int64_t D, std::int64_t k,
                                      bool two_of_four = false, bool pairs = false) {
  std::vector<float> out(x.size());
  for (std::size_t row = 0; row < x.size(); row += static_cast<std::size_t>(D)) {
    const std::vector<float> one(x.begin() + static_cast<std::ptrdiff_t>(row),
                                 x.begin() + static_cast<std::ptrdiff_t>(row) + D);
    for (std::uint8_t d : pairs ? selected_pairs(one, k) : selected_features(one, k, two_of_four))
      out[row + d] = one[d];
  }
  return out;
}

}  // namespace sfa::test
