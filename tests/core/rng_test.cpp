// Counter-based random numbers: the published test vectors, and that the derived numbers are what they claim.
#include "core/rng.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace sfa {
namespace {

// philox4x32-10 of the known-answer file of Random123 (kat_vectors): counter words are (index lo, index hi, sub,
// purpose).
TEST(Philox, PublishedVectors) {
  using Words = std::array<std::uint32_t, 4>;
  EXPECT_EQ(philox(0, 0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~0ull, ~0u, ~0ull, ~0u), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox(0x299f31d0a4093822ull, 0x03707344, 0x85a308d3243f6a88ull, 0x13198a2e),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, EveryPartOfTheCounterAndKeyCounts) {
  std::set<std::array<std::uint32_t, 4>> seen;
  for (std::uint64_t seed : {0ull, 1ull, 1ull << 32})
    for (std::uint32_t purpose : {0u, 1u})
      for (std::uint64_t index : {0ull, 1ull, 1ull << 32})
        for (std::uint32_t sub : {0u, 1u}) seen.insert(philox(seed, purpose, index, sub));
  EXPECT_EQ(seen.size(), 36u);
}

TEST(Uniform, LiesStrictlyBetweenZeroAndOne) {
  EXPECT_GT(uniform_from_bits(0), 0.0f);
  EXPECT_LT(uniform_from_bits(~0u), 1.0f);
  EXPECT_GT(uniform_from_bits(~0u), 0.9999f);
  EXPECT_NEAR(uniform_from_bits(1u << 31), 0.5f, 1e-7);
}

TEST(Normal, HasTheMomentsOfAStandardNormal) {
  const int n = 400000;
  double sum = 0, squares = 0, fourth = 0, neighbours = 0, before = 0;
  int beyond = 0;
  for (int i = 0; i < n; ++i) {
    const double x = normal_at(7, kPurposeTest, 3, static_cast<std::uint64_t>(i));
    sum += x;
    squares += x * x;
    fourth += x * x * x * x;
    neighbours += x * before;
    before = x;
    beyond += std::fabs(x) > 1.959964;
  }
  // Five standard deviations of each estimate.
  EXPECT_NEAR(sum / n, 0.0, 5 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 1.0, 5 * std::sqrt(2.0 / n));
  EXPECT_NEAR(fourth / n, 3.0, 5 * std::sqrt(96.0 / n));
  EXPECT_NEAR(neighbours / n, 0.0, 5 / std::sqrt(n));
  EXPECT_NEAR(static_cast<double>(beyond) / n, 0.05, 5 * std::sqrt(0.05 * 0.95 / n));
}

TEST(Normal, ElementsOfABlockAreFourDifferentNumbersOfThatBlock) {
  const Random4 r = philox4(5, kPurposeTest, 9, 2);
  const double u = (r.v[2] + 0.5) / 4294967296.0, w = (r.v[3] + 0.5) / 4294967296.0;
  EXPECT_FLOAT_EQ(normal_at(5, kPurposeTest, 9, 10),
                  static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * w)));
  EXPECT_FLOAT_EQ(normal_at(5, kPurposeTest, 9, 11),
                  static_cast<float>(std::sqrt(-2 * std::log(u)) * std::sin(6.283185307179586 * w)));
}

}  // namespace
}  // namespace sfa
