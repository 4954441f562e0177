// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// A number is a pure function of (seed, purpose, index, sub), so that the CPU and the GPU, one rank and many, a fresh
// run and a resumed one all draw the same numbers, and no generator state has to be saved.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace sfa {

/// What a stream of random numbers is for; two purposes never share numbers.
enum Purpose : std::uint32_t {
  kPurposeInit = 1,      // index = parameter number, sub = element / 4
  kPurposeShuffle = 2,   // data order
  kPurposeSampling = 3,  // text generation
  kPurposeOffset = 4,    // window offset of an epoch
  kPurposeRounding = 5,  // stochastic rounding of weights: index = number of the update, sub = element / 4
  kPurposeTest = 100,
};

struct Random4 {
  std::uint32_t v[4];
};

/// Ten rounds of Philox with counter (index, sub, purpose) and key `seed`.
SFA_HOST_DEVICE inline Random4 philox4(std::uint64_t seed, std::uint32_t purpose, std::uint64_t index,
                                       std::uint32_t sub) {
  std::uint32_t c0 = static_cast<std::uint32_t>(index), c1 = static_cast<std::uint32_t>(index >> 32), c2 = sub,
                c3 = purpose;
  std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2;
    const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

inline std::array<std::uint32_t, 4> philox(std::uint64_t seed, std::uint32_t purpose, std::uint64_t index,
                                           std::uint32_t sub) {
  const Random4 r = philox4(seed, purpose, index, sub);
  return {r.v[0], r.v[1], r.v[2], r.v[3]};
}

/// Uniform in (0, 1), 23 bits: never 0, so that its logarithm is finite, and never 1 (the largest, 1 - 2^-24, needs all
/// bits of a float).
SFA_HOST_DEVICE inline float uniform_from_bits(std::uint32_t bits) {
  return (static_cast<float>(bits >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

/// Element `i` of a standard normal stream (Box-Muller over pairs of one Philox block), computed in double so that
/// every compiler and device rounds to the same float.
inline float normal_at(std::uint64_t seed, std::uint32_t purpose, std::uint64_t index, std::uint64_t i) {
  const Random4 r = philox4(seed, purpose, index, static_cast<std::uint32_t>(i / 4));
  const std::uint32_t pair = static_cast<std::uint32_t>(i % 4) & 2u;
  const double u = (static_cast<double>(r.v[pair]) + 0.5) / 4294967296.0;
  const double w = (static_cast<double>(r.v[pair + 1]) + 0.5) / 4294967296.0;
  const double radius = std::sqrt(-2.0 * std::log(u)), angle = 6.283185307179586 * w;
  return static_cast<float>(radius * ((i % 2) == 0 ? std::cos(angle) : std::sin(angle)));
}

}  // namespace sfa
