#include "data/permutation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

namespace sfa {
namespace {

TEST(Permutation, IsABijectionForEverySmallSizeAndSomeLargeOnes) {
  std::vector<std::int64_t> sizes(300);
  std::iota(sizes.begin(), sizes.end(), 1);
  sizes.insert(sizes.end(), {1023, 1024, 1025, 4095, 4097, 65535, 65536, 65537, 100003});
  for (const std::int64_t n : sizes) {
    const Permutation permutation(n, 42, 3);
    std::vector<bool> seen(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t p = permutation(i);
      ASSERT_TRUE(p >= 0 && p < n) << n;
      ASSERT_FALSE(seen[static_cast<std::size_t>(p)]) << n;
      seen[static_cast<std::size_t>(p)] = true;
    }
  }
}

TEST(Permutation, StaysInsideAHugeDomain) {
  for (const std::int64_t n : {(std::int64_t{1} << 40) + 1, (std::int64_t{1} << 62) - 1}) {
    const Permutation permutation(n, 1, 0);
    for (std::int64_t i = 0; i < 1000; ++i) {
      EXPECT_GE(permutation(n - 1 - i), 0);
      EXPECT_LT(permutation(n - 1 - i), n);
    }
  }
}

TEST(Permutation, DependsOnSeedAndEpoch) {
  const Permutation a(1000, 1, 0), b(1000, 2, 0), c(1000, 1, 1);
  int same_seed = 0, same_epoch = 0;
  for (std::int64_t i = 0; i < 1000; ++i) {
    same_seed += a(i) == b(i);
    same_epoch += a(i) == c(i);
  }
  EXPECT_LT(same_seed, 10);  // a random permutation agrees with another in one place on average
  EXPECT_LT(same_epoch, 10);
}

// Over many seeds each value is equally likely at each place: chi-square with 7 x 7 degrees of freedom, 5 sigma.
TEST(Permutation, IsUniformOverSeeds) {
  constexpr int n = 8, seeds = 8000;
  std::vector<int> count(n * n);
  for (int seed = 0; seed < seeds; ++seed) {
    const Permutation permutation(n, static_cast<std::uint64_t>(seed), 0);
    for (int i = 0; i < n; ++i) ++count[static_cast<std::size_t>(i * n + permutation(i))];
  }
  double chi = 0.0;
  for (const int c : count) chi += (c - seeds / n) * static_cast<double>(c - seeds / n) / (seeds / n);
  EXPECT_LT(chi, 49 + 5 * std::sqrt(2.0 * 49));
}

// Neighbours do not stay neighbours: differences of images of i and i + 1 look like those of independent draws.
TEST(Permutation, HasNoSerialCorrelation) {
  constexpr std::int64_t n = 20000;
  const Permutation permutation(n, 5, 0);
  double sum = 0.0;
  for (std::int64_t i = 0; i + 1 < n; ++i)
    sum += (static_cast<double>(permutation(i)) / n - 0.5) * (static_cast<double>(permutation(i + 1)) / n - 0.5) * 12.0;
  EXPECT_LT(std::abs(sum / n), 5.0 / std::sqrt(static_cast<double>(n)));
}

}  // namespace
}  // namespace sfa
