// A pseudo-random permutation of [0, n) in O(1) memory: shuffling without replacement for any number of samples.
//
// A balanced Feistel network over the smallest even number of bits that holds n, keyed through Philox by (seed, epoch),
// with cycle walking: values outside [0, n) are sent through again until they fall inside (Black and Rogaway, "Ciphers
// with arbitrary finite domains", 2002). The domain is less than 4 n, so a value walks less than four times on average.
#pragma once

#include <cstdint>

namespace sfa {

class Permutation {
 public:
  /// n in [1, 2^62].
  Permutation(std::int64_t n, std::uint64_t seed, std::uint64_t epoch);
  /// A bijection of [0, n).
  [[nodiscard]] std::int64_t operator()(std::int64_t i) const;

 private:
  static constexpr std::uint32_t kRounds = 6;
  std::uint64_t n_, seed_, epoch_;
  int half_bits_;
};

}  // namespace sfa
