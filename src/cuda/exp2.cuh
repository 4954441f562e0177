// 2^x for softmax, on the two kinds of unit that can do it: MUFU (ex2.approx, 16 a clock and SM) and the FMA units (a
// degree-3 polynomial after range reduction). Using both at once raises the rate to 20 a clock and SM.
#pragma once

#include <cstdint>

namespace sfa {

/// One MUFU operation; results below 2^-126 are zero; relative error about 2^-22.
__device__ __forceinline__ float exp2_mufu(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// FMA and ALU units only. x is clamped to [-126, inf) and must be below 128; relative error at most 7.5e-5, a fiftieth
/// of the bf16 rounding that the result meets. Cody-Waite: adding 1.5 * 2^23 leaves round(x) in the low mantissa bits,
/// which are then added to the exponent field of p(x - round(x)).
__device__ __forceinline__ float exp2_fma(float x) {
  constexpr float kMagic = 12582912.0f;
  x = fmaxf(x, -126.0f);
  const float shifted = x + kMagic;
  const float fraction = x - (shifted - kMagic);
  float p = fmaf(0.055171669074864024f, fraction, 0.24261112219433098f);
  p = fmaf(p, fraction, 0.6932609854573362f);
  p = fmaf(p, fraction, 0.9999280735404955f);
  return __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
}

/// Two floats rounded to bf16 (nearest even); `low` takes the lower half of the word.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

}  // namespace sfa
