// The compiled instances of the sm_80 kernels, one a .cu file; each returns a cudaError_t as int.
#pragma once

#include "attention/flash/flash_params.h"

namespace sfa::flash {

int sm80_forward_d32(const ForwardParams& params, void* stream);
int sm80_forward_d32_v64(const ForwardParams& params, void* stream);
int sm80_forward_d64(const ForwardParams& params, void* stream);
int sm80_forward_d64_v128(const ForwardParams& params, void* stream);
int sm80_forward_d96(const ForwardParams& params, void* stream);
int sm80_forward_d128(const ForwardParams& params, void* stream);
int sm80_forward_d128_v64(const ForwardParams& params, void* stream);
int sm80_forward_d192(const ForwardParams& params, void* stream);
int sm80_forward_d256(const ForwardParams& params, void* stream);

/// Queries of which at most two of four neighbouring features are not zero.
int sm80_sparse24_d32(const ForwardParams& params, void* stream);
int sm80_sparse24_d32_v64(const ForwardParams& params, void* stream);
int sm80_sparse24_d64(const ForwardParams& params, void* stream);
int sm80_sparse24_d64_v128(const ForwardParams& params, void* stream);
int sm80_sparse24_d96(const ForwardParams& params, void* stream);
int sm80_sparse24_d128(const ForwardParams& params, void* stream);
int sm80_sparse24_d128_v64(const ForwardParams& params, void* stream);
int sm80_sparse24_d192(const ForwardParams& params, void* stream);
int sm80_sparse24_d256(const ForwardParams& params, void* stream);

struct Sm80BackwardArgs;
/// dK, dV and dQ, after the preparing kernel.
using Sm80BackwardLauncher = int (*)(const Sm80BackwardArgs& args, void* stream);
int sm80_backward_d32(const Sm80BackwardArgs& args, void* stream);
int sm80_backward_d32_v64(const Sm80BackwardArgs& args, void* stream);
int sm80_backward_d64(const Sm80BackwardArgs& args, void* stream);
int sm80_backward_d64_v128(const Sm80BackwardArgs& args, void* stream);
int sm80_backward_d96(const Sm80BackwardArgs& args, void* stream);
int sm80_backward_d128(const Sm80BackwardArgs& args, void* stream);
int sm80_backward_d128_v64(const Sm80BackwardArgs& args, void* stream);
int sm80_backward_d192(const Sm80BackwardArgs& args, void* stream);
int sm80_backward_d256(const Sm80BackwardArgs& args, void* stream);

}  // namespace sfa::flash
