// How a KV cache holds which features a key keeps: k ascending numbers of a byte each, or one bit a feature where that
// is fewer bytes. The values of a key lie in ascending order of their features either way. No includes but for numbers:
// kernels compiled for one instruction set read masks by it.
#pragma once

#include <cstdint>
#include <cstring>

namespace sfa {

/// Bytes of one bit a feature, whole words: feature f is bit f % 8 of byte f / 8.
constexpr std::int64_t mask_bytes(std::int64_t features) {
  return (features + 31) / 32 * 4;
}

struct SupportFormat {
  bool mask;
  std::int64_t bytes;  // of a key
};

/// Of k features out of `features`: no key of a setting decides, the smaller one is taken, numbers where both are
/// equal.
constexpr SupportFormat support_format(std::int64_t features, std::int64_t k) {
  const bool mask = mask_bytes(features) < k;
  return {mask, mask ? mask_bytes(features) : k};
}

/// The first k features of a mask of `bytes` bytes, ascending; zeros behind them if it has fewer.
[[gnu::always_inline]] inline void unpack_mask(const std::uint8_t* mask, std::int64_t bytes, std::int64_t k,
                                               std::uint8_t* numbers) {
  std::int64_t n = 0;
  for (std::int64_t at = 0; at < bytes; at += 4) {
    std::uint32_t word;
    std::memcpy(&word, mask + at, 4);
    for (; word != 0 && n < k; word &= word - 1) numbers[n++] = static_cast<std::uint8_t>(8 * at + __builtin_ctz(word));
  }
  while (n < k) numbers[n++] = 0;
}

}  // namespace sfa
