// Exponential written so that compilers vectorise it inside `#pragma omp simd` loops; std::exp stays a scalar call
// there.
#pragma once

#include <bit>
#include <cstdint>

namespace sfa::simd {

/// exp(x) with a relative error below 2 ulp for x in [-87, 88]; 0 below, +inf above, NaN for NaN.
/// x = n ln2 + r with |r| <= ln2 / 2 (Cody-Waite in two parts), e^r by its Taylor series to degree 7
/// (remainder below 5e-9).
inline float exp(float x) {
  constexpr float kLog2e = 1.44269504088896341f, kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;
  const float clamped = x < -87.3f ? -87.3f : (x > 88.3f ? 88.3f : x);
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const float shifted = clamped * kLog2e + kMagic;
  const float n = shifted - kMagic;
  const float r = (clamped - n * kLn2Hi) - n * kLn2Lo;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  const std::int32_t scale = (std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kMagic)) << 23;
  const float value = std::bit_cast<float>(std::bit_cast<std::int32_t>(p) + scale);
  const float low = x < -87.3f ? 0.0f : value;
  const float high = x > 88.3f ? __builtin_inff() : low;
  return x != x ? x : high;
}

}  // namespace sfa::simd
