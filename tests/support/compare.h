// Numbers for tests and their comparison. An op is compared with its formula in double; the tolerance is derived: twice
// the error that the same formula, evaluated naively in the precision of the op, makes against double (and never below
// a few units of rounding, since a naive evaluation may be lucky).
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/rng.h"

namespace sfa::test {

inline constexpr double kUnitF32 = 5.9604644775390625e-8;  // 2^-24: half a unit in the last place of 1
inline constexpr double kUnitBf16 = 3.90625e-3;            // 2^-8

/// n standard normal numbers times std_dev; `stream` tells the vectors of one test apart.
inline std::vector<float> normal(std::int64_t n, std::uint64_t stream, float std_dev = 1.0f) {
  std::vector<float> out(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = std_dev * normal_at(1234, kPurposeTest, stream, i);
  return out;
}

inline std::vector<float> rounded(std::vector<float> values) {
  for (float& v : values) v = round_to_bf16(v);
  return values;
}

template <class T>
std::vector<T> as(const std::vector<float>& values) {
  return std::vector<T>(values.begin(), values.end());
}

inline bool all_bf16(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isnan(v) || v == round_to_bf16(v); });
}

/// || got - want || / || want ||; infinite when anything that should be finite is not. `magnitude`: where terms of
/// about that size cancel (a gradient that is zero by symmetry), the error is measured against them rather than against
/// what is left.
template <class T>
double norm_error(const std::vector<T>& got, const std::vector<double>& want, double magnitude = 0) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, total = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double d = static_cast<double>(got[i]) - want[i];
    difference += d * d;
    total += want[i] * want[i];
  }
  if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
  return std::sqrt(difference) /
         std::max({std::sqrt(total), magnitude * std::sqrt(static_cast<double>(want.size())), 1e-30});
}

template <class T>
::testing::AssertionResult near_in_norm(const std::vector<T>& got, const std::vector<double>& want, double tolerance,
                                        double magnitude = 0) {
  const double error = norm_error(got, want, magnitude);
  if (error <= tolerance) return ::testing::AssertionSuccess();
  std::string first;
  for (std::size_t i = 0; i < std::min(got.size(), want.size()); ++i)
    if (!(std::fabs(static_cast<double>(got[i]) - want[i]) <= tolerance * std::max(std::fabs(want[i]), 1e-3))) {
      first =
          "; first at " + std::to_string(i) + ": " + std::to_string(got[i]) + " instead of " + std::to_string(want[i]);
      break;
    }
  return ::testing::AssertionFailure() << "relative error " << error << " in norm, allowed " << tolerance << ", "
                                       << got.size() << " values (" << want.size() << " wanted)" << first;
}

/// The tolerance of the opening comment.
inline double derived_tolerance(const std::vector<float>& naive, const std::vector<double>& exact,
                                double magnitude = 0) {
  return 2.0 * norm_error(naive, exact, magnitude) + 4.0 * kUnitF32;
}

/// Central differences of f at x in double. Truncation and rounding leave a relative error of about 1e-9.
template <class F>
std::vector<double> numeric_gradient(F f, std::vector<double> x) {
  std::vector<double> gradient(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double at = x[i], step = 1e-5 * std::max(1.0, std::fabs(at));
    x[i] = at + step;
    const double above = f(x);
    x[i] = at - step;
    const double below = f(x);
    x[i] = at;
    gradient[i] = (above - below) / (2 * step);
  }
  return gradient;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// values + amount: what an accumulated gradient must be after it was pre-filled with `amount`.
inline std::vector<double> plus(std::vector<double> values, double amount, double times = 1.0) {
  for (double& v : values) v = times * v + amount;
  return values;
}

}  // namespace sfa::test
