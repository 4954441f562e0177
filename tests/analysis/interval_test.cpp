// Confidence intervals against what is known of them.
#include "analysis/interval.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "support/compare.h"

namespace sfa::test {
namespace {

TEST(Interval, BootstrapCoversTheSpreadOfIndependentDocuments) {
  // Documents of one token: the gap is a mean of n normal differences, whose interval is known.
  const std::int64_t n = 1600;
  const std::vector<float> noise = normal(n, 3);
  std::vector<DocumentLoss> a, b;
  for (const float x : noise) {
    a.push_back({1, 2.0});
    b.push_back({1, 2.1 + 0.5 * static_cast<double>(x)});
  }
  const Interval gap = bootstrap_gap(a, b);
  const double half = 1.96 * 0.5 / std::sqrt(static_cast<double>(n));
  EXPECT_NEAR((gap.high - gap.low) / 2, half, 0.12 * half);
  EXPECT_NEAR((gap.high + gap.low) / 2, gap.value, 0.1 * half);
  EXPECT_NEAR(gap.value, 0.1, 3 * half);
  const Interval again = bootstrap_gap(a, b);
  EXPECT_EQ(gap.low, again.low);
}

TEST(Interval, LongDocumentsCountByTheirTokens) {
  const std::vector<DocumentLoss> a{{1, 1.0}, {99, 99.0}}, b{{1, 2.0}, {99, 99.0}};
  EXPECT_DOUBLE_EQ(bootstrap_gap(a, b).value, 0.01);
  EXPECT_THROW(bootstrap_gap(a, {{1, 1.0}}), Error);
  EXPECT_THROW(bootstrap_gap(a, {{2, 1.0}, {98, 98.0}}), Error);
}

TEST(Interval, SeedsByStudent) {
  const Interval one = paired_gap({0.5});
  EXPECT_EQ(one.low, 0.5);
  EXPECT_EQ(one.high, 0.5);
  // Mean 2, deviation 1, three of them: t = 4.303.
  const Interval three = paired_gap({1, 2, 3});
  EXPECT_DOUBLE_EQ(three.value, 2);
  EXPECT_NEAR(three.high - 2, 4.303 / std::sqrt(3.0), 1e-9);
  EXPECT_NEAR(2 - three.low, 4.303 / std::sqrt(3.0), 1e-9);
}

}  // namespace
}  // namespace sfa::test
