// Tiled attention forward on the GPU (sm_90a): the entry that callers use; flash_params.h states the mathematics.
#pragma once

#include <cstdint>

#include "attention/flash/flash_params.h"

namespace sfa::flash {

/// How S = Q K^T is multiplied.
enum class Product : std::uint8_t {
  dense,    ///< q as it is (zero-filled when features were selected)
  sparse24  ///< q compressed 2 of 4 (ForwardParams::q_compressed), k dense or zero-filled
};

/// Whether a kernel exists for these head sizes.
bool forward_supported(const Shape& shape, Product product);

/// Launches on `stream` (a cudaStream_t). Allocates nothing, does not wait; the same inputs give the same bits. Throws
/// Error on a shape without a kernel, misaligned memory or a failed launch.
void forward(const ForwardParams& params, Product product, void* stream);

}  // namespace sfa::flash
