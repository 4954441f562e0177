// The scalar rules of an update that the CPU and the GPU must share to the bit: stochastic rounding to bf16, and how
// much a new weight counts in the running average of weights.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/rng.h"

namespace sfa {

/// x rounded to one of the two bf16 values around it, up with probability (x - lower) / (upper - lower), so that the
/// expectation is x (Gupta et al., arXiv 1502.02551; for bf16 weights Zamirai et al., arXiv 2010.06192). A bf16 value
/// stays what it is; so do infinities and NaN, and no finite x becomes infinite. The upper 16 of `bits` decide.
SFA_HOST_DEVICE inline float stochastic_bf16(float x, std::uint32_t bits) {
  std::uint32_t u = 0;
  memcpy(&u, &x, sizeof u);
  constexpr std::uint32_t kExponent = 0x7f800000u, kKept = 0xffff0000u;
  if ((u & kExponent) == kExponent) return x;
  std::uint32_t rounded = (u + (bits >> 16)) & kKept;
  if ((rounded & kExponent) == kExponent) rounded = u & kKept;
  float y = 0;
  memcpy(&y, &rounded, sizeof y);
  return y;
}

/// Share of the new weights in the average after update t = 1, 2, ...: 1 - min(decay, (1 + t) / (10 + t)), so that a
/// young average is not held down by the initial weights.
SFA_HOST_DEVICE inline float ema_weight(std::int64_t update, float decay) {
  const float t = static_cast<float>(update), ramp = (1.0f + t) / (10.0f + t);
  return 1.0f - (ramp < decay ? ramp : decay);
}

}  // namespace sfa
