// The compiled instances of the forward kernel, one a .cu file; each returns a cudaError_t as int.
#pragma once

#include "attention/flash/flash_params.h"

namespace sfa::flash {

int forward_dense_d32(const ForwardParams& params, void* stream);
int forward_dense_d32_v64(const ForwardParams& params, void* stream);
int forward_dense_d64_v128(const ForwardParams& params, void* stream);
int forward_dense_d96(const ForwardParams& params, void* stream);
int forward_dense_d64(const ForwardParams& params, void* stream);
int forward_dense_d64_short(const ForwardParams& params, void* stream);
int forward_dense_d128(const ForwardParams& params, void* stream);
int forward_dense_d192(const ForwardParams& params, void* stream);
int forward_dense_d256(const ForwardParams& params, void* stream);
int forward_dense_d128_v64(const ForwardParams& params, void* stream);
int forward_sparse24_d64(const ForwardParams& params, void* stream);
int forward_sparse24_d64_short(const ForwardParams& params, void* stream);
int forward_sparse24_d64_long(const ForwardParams& params, void* stream);
int forward_sparse24_d128(const ForwardParams& params, void* stream);
int forward_sparse24_d128_longest(const ForwardParams& params, void* stream);
int forward_sparse24_d128_v64(const ForwardParams& params, void* stream);

}  // namespace sfa::flash
