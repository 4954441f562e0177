// Host side of tensor TMA: describes a strided tensor in global memory so that kernels can copy boxes of it.
// A map is 128 bytes, passed to the kernel as a __grid_constant__ parameter; building one touches neither the device
// nor the heap and takes well under a microsecond.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace sfa {

enum class TensorMapType : std::uint8_t { bf16, f32, u32 };

/// Dimensions innermost first. stride[i] is in elements, stride[0] must be 1; all others must be multiples of 16 bytes,
/// as must the address. Rank 2 to 5. `swizzle_bytes` is 0, 32, 64 or 128 and bounds the bytes of a box row.
struct TensorMapSpec {
  const void* data = nullptr;
  TensorMapType type = TensorMapType::bf16;
  int rank = 0;
  std::int64_t extent[5] = {1, 1, 1, 1, 1};
  std::int64_t stride[5] = {1, 1, 1, 1, 1};
  int box[5] = {1, 1, 1, 1, 1};
  int swizzle_bytes = 128;
};

/// Throws Error when the driver refuses (misaligned address or stride, box too large).
CUtensorMap make_tensor_map(const TensorMapSpec& spec);

}  // namespace sfa
