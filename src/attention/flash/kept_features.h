// Rows of queries or keys as SFA stores them, for the kernels that take them so.
#pragma once

#include <cstdint>

namespace sfa::flash {

/// Rows that keep k of their features, contiguous on the device: values [B, T, heads, k] in bf16, aligned to 16 bytes,
/// and (to 8 bytes) which features they are, distinct and below Dqk.
struct KeptFeatures {
  const void* values = nullptr;
  const std::uint8_t* indices = nullptr;
  int k = 0;
};

}  // namespace sfa::flash
