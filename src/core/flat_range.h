// A stretch of a flat buffer: what one rank owns of it, one bucket of gradients, one parameter.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sfa {

/// Elements [begin, begin + count).
struct FlatRange {
  std::int64_t begin = 0, count = 0;
  [[nodiscard]] std::int64_t end() const { return begin + count; }
  bool operator==(const FlatRange&) const = default;
};

/// What both hold; count 0 when nothing.
inline FlatRange intersection(const FlatRange& a, const FlatRange& b) {
  const std::int64_t begin = std::max(a.begin, b.begin), end = std::min(a.end(), b.end());
  return {begin, std::max<std::int64_t>(0, end - begin)};
}

}  // namespace sfa
