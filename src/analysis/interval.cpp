#include "analysis/interval.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/rng.h"

namespace sfa {
namespace {

constexpr std::uint32_t kPurposeBootstrap = 23;  // of core/rng.h's numbers; index = draw, sub = document / 4

// 0.975 quantiles of Student's t with 1, 2, ... degrees of freedom.
constexpr std::array kStudent{12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                              2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086};

}  // namespace

Interval bootstrap_gap(const std::vector<DocumentLoss>& first, const std::vector<DocumentLoss>& other,
                       std::int64_t draws) {
  require(first.size() == other.size() && !first.empty(), "the runs were evaluated on {} and {} documents",
          first.size(), other.size());
  double nats = 0, tokens = 0;
  for (std::size_t i = 0; i < first.size(); ++i) {
    require(first[i].tokens == other[i].tokens, "document {} has {} tokens for one run and {} for the other", i,
            first[i].tokens, other[i].tokens);
    nats += other[i].nats - first[i].nats;
    tokens += static_cast<double>(first[i].tokens);
  }
  const std::size_t n = first.size();
  std::vector<double> gaps;
  for (std::int64_t draw = 0; draw < draws; ++draw) {
    double sum = 0, count = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const auto random =
          philox(1, kPurposeBootstrap, static_cast<std::uint64_t>(draw), static_cast<std::uint32_t>(i / 4));
      const std::size_t pick = static_cast<std::size_t>(static_cast<std::uint64_t>(random[i % 4]) * n >> 32);
      sum += other[pick].nats - first[pick].nats;
      count += static_cast<double>(first[pick].tokens);
    }
    gaps.push_back(count > 0 ? sum / count : 0);
  }
  std::sort(gaps.begin(), gaps.end());
  const auto quantile = [&](double q) {
    return gaps[static_cast<std::size_t>(std::llround(q * static_cast<double>(gaps.size() - 1)))];
  };
  return {nats / tokens, quantile(0.025), quantile(0.975)};
}

Interval paired_gap(const std::vector<double>& differences) {
  require(!differences.empty(), "internal error: no differences to take the mean of");
  const double n = static_cast<double>(differences.size());
  const double mean = std::accumulate(differences.begin(), differences.end(), 0.0) / n;
  if (differences.size() == 1) return {mean, mean, mean};
  double squares = 0;
  for (const double d : differences) squares += (d - mean) * (d - mean);
  const double t = kStudent[std::min(differences.size() - 2, kStudent.size() - 1)];
  const double half = t * std::sqrt(squares / (n - 1) / n);
  return {mean, mean - half, mean + half};
}

}  // namespace sfa
