// The load balance of ops/balance in double, from rows and the features that each of them kept.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace sfa::test {

/// Rows [R, heads, D] and kept features [R, heads, k].
struct BalanceCase {
  std::int64_t R = 0, heads = 0, D = 0, k = 0;
  std::vector<double> x = {};
  std::vector<std::uint8_t> kept = {};
};

/// f of every head: [heads, D].
inline std::vector<double> kept_shares(const BalanceCase& c) {
  std::vector<double> f(static_cast<std::size_t>(c.heads * c.D));
  for (std::int64_t n = 0; n < c.R * c.heads; ++n)
    for (std::int64_t i = 0; i < c.k; ++i)
      f[static_cast<std::size_t>(n % c.heads * c.D + c.kept[static_cast<std::size_t>(n * c.k + i)])] +=
          1.0 / static_cast<double>(c.R * c.k);
  return f;
}

/// R times the sum over heads of D sum_j f_j p_j, f given.
inline double balance_total(const BalanceCase& c, const std::vector<double>& f) {
  double total = 0;
  for (std::int64_t n = 0; n < c.R * c.heads; ++n) {
    double sum = 0, shared = 0;
    for (std::int64_t j = 0; j < c.D; ++j) {
      const double size = std::fabs(c.x[static_cast<std::size_t>(n * c.D + j)]);
      sum += size;
      shared += f[static_cast<std::size_t>(n % c.heads * c.D + j)] * size;
    }
    if (sum > 0) total += static_cast<double>(c.D) * shared / sum;
  }
  return total;
}

/// Its gradient with respect to x, f held fixed.
inline std::vector<double> balance_gradient(const BalanceCase& c) {
  const std::vector<double> f = kept_shares(c);
  std::vector<double> d(c.x.size());
  for (std::int64_t n = 0; n < c.R * c.heads; ++n) {
    const auto at = [&](std::int64_t j) { return static_cast<std::size_t>(n * c.D + j); };
    const auto share = [&](std::int64_t j) { return f[static_cast<std::size_t>(n % c.heads * c.D + j)]; };
    double sum = 0, mean = 0;
    for (std::int64_t j = 0; j < c.D; ++j) sum += std::fabs(c.x[at(j)]);
    if (sum == 0) continue;
    for (std::int64_t j = 0; j < c.D; ++j) mean += share(j) * std::fabs(c.x[at(j)]) / sum;
    for (std::int64_t j = 0; j < c.D; ++j)
      d[at(j)] = static_cast<double>(c.D) / sum * (share(j) - mean) *
                 ((c.x[at(j)] > 0 ? 1.0 : 0.0) - (c.x[at(j)] < 0 ? 1.0 : 0.0));
  }
  return d;
}

}  // namespace sfa::test
