// Counting that every variant's cost() shares.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sfa {

/// Causal pairs of T queries with the keys they see, each at most `window` keys back (0 = all).
inline double visible_pairs(std::int64_t T, std::int64_t window) {
  const double t = static_cast<double>(T);
  if (window <= 0 || window >= T) return t * (t + 1) / 2;
  const double w = static_cast<double>(window);
  return w * (w + 1) / 2 + (t - w) * w;
}

/// Bytes of a row of `features` in a cache in 8 bits (ops/int8_rows): whole pieces of 16, and the scale.
inline double int8_row_bytes(std::int64_t features) {
  return static_cast<double>((features + 15) / 16 * 16 + 2);
}

}  // namespace sfa
