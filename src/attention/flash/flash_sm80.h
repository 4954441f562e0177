// The tiled attention for every card from compute capability 8.0 on, forward and backward, in bf16 with f32 sums:
// flash_params.h and flash_backward.h state the mathematics. It serves head sizes, Dqk and Dv apart, that are multiples
// of 16 up to 256; on compute capability 9.0 flash_forward.h and flash_backward.h have faster kernels for some of them.
#pragma once

#include <cstddef>

#include "attention/flash/flash_backward.h"
#include "attention/flash/flash_forward.h"
#include "attention/flash/flash_params.h"

namespace sfa::flash {

/// Whether Dqk and Dv are multiples of 16 in [16, 256].
bool sm80_supported(const Shape& shape);

/// `q` is read under either product: sparse24 takes zero-filled rows, of whose features 4c .. 4c + 3 at most two may be
/// anything but zero (of more, some would be left out), and compresses them itself. ForwardParams::q_compressed and
/// tile_counter are not read. Launches on `stream` (a cudaStream_t). Allocates nothing, does not wait; the same inputs
/// give the same bits. Throws Error on a shape without a kernel, misaligned memory or a failed launch.
void sm80_forward(const ForwardParams& params, Product product, void* stream);

/// Bytes of scratch that one backward call needs.
std::size_t sm80_backward_workspace_bytes(const Shape& shape);

/// As flash::backward; heads_together is not read. Three kernels, none of which adds to what another block wrote, so
/// two runs give the same bits.
void sm80_backward(const BackwardParams& params, void* stream);

}  // namespace sfa::flash
