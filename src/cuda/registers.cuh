// What the compiler may know of registers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sfa {

/// Hides from the compiler what the registers hold: it would otherwise keep the unpacked f32 values of the first pass
/// for the second, at twice the registers.
template <class Pack>
__device__ __forceinline__ void keep_packed(Pack& pack) {
  if constexpr (sizeof(Pack) % 4 == 0) {
    auto* words = reinterpret_cast<std::uint32_t*>(&pack);
#pragma unroll
    for (std::size_t i = 0; i < sizeof(Pack) / 4; ++i) asm volatile("" : "+r"(words[i]));
  }
}

}  // namespace sfa
