#include "data/permutation.h"

#include "core/error.h"
#include "core/rng.h"

namespace sfa {

Permutation::Permutation(std::int64_t n, std::uint64_t seed, std::uint64_t epoch)
    : n_(static_cast<std::uint64_t>(n)), seed_(seed), epoch_(epoch), half_bits_(1) {
  require(n >= 1 && n <= (std::int64_t{1} << 62), "internal error: a permutation of {} elements", n);
  while (half_bits_ < 31 && (std::uint64_t{1} << (2 * half_bits_)) < n_) ++half_bits_;
}

std::int64_t Permutation::operator()(std::int64_t i) const {
  const auto mask = static_cast<std::uint32_t>((std::uint64_t{1} << half_bits_) - 1);
  auto value = static_cast<std::uint64_t>(i);
  do {
    auto left = static_cast<std::uint32_t>(value >> half_bits_), right = static_cast<std::uint32_t>(value) & mask;
    for (std::uint32_t round = 0; round < kRounds; ++round) {
      // Round function: one Philox block keyed by the seed; its counter holds (epoch, round) and the half mixed in.
      const auto word = philox(seed_, kPurposeShuffle, epoch_ * kRounds + round, right);
      const std::uint32_t mixed = left ^ (word[0] & mask);
      left = right;
      right = mixed;
    }
    value = (std::uint64_t{left} << half_bits_) | right;
  } while (value >= n_);
  return static_cast<std::int64_t>(value);
}

}  // namespace sfa
