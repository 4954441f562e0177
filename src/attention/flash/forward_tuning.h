// Which configuration of the forward core serves which head sizes. docs/kernels_forward.md has the measurements.
#pragma once

#include "attention/flash/forward_core.cuh"

namespace sfa::flash {

// Exponentials stay on the MUFU units throughout: a polynomial on every fourth costs 10 % at d = 64, on every eighth 6
// to 10 %, since the issue of instructions binds before the MUFU units do.
//                                 Dqk  Dv  warpgroups keys stages blocks/SM overlap turns FMA-period product
using DenseD64 = ForwardConfig<64, 64, 3, 128, 4, 1, true, true, 0, DenseShared>;
/// Two blocks an SM hide each other's beginnings and ends, which is what counts for short rows.
using DenseD64Short = ForwardConfig<64, 64, 2, 64, 4, 2, false, false, 0, DenseShared>;
using DenseD128 = ForwardConfig<128, 128, 2, 128, 2, 1, true, true, 0, DenseRegisters>;
/// Without turns: 4 % slower at 4096 keys, 4 % faster at 8192, 8 % at 16384.
using DenseD128Long = ForwardConfig<128, 128, 2, 128, 2, 1, true, false, 0, DenseRegisters>;
// Sizes between two instances run on the next one, filled up with zeros by TMA.
using DenseD32 = ForwardConfig<32, 32, 3, 128, 4, 1, true, true, 0, DenseShared>;
using DenseD32V64 = ForwardConfig<32, 64, 3, 128, 4, 1, true, true, 0, DenseShared>;
using DenseD64V128 = ForwardConfig<64, 128, 2, 128, 2, 1, true, true, 0, DenseRegisters>;
using DenseD96 = ForwardConfig<96, 96, 2, 128, 2, 1, true, true, 0, DenseRegisters>;
using DenseD128V64 = ForwardConfig<128, 64, 2, 128, 2, 1, true, true, 0, DenseRegisters>;
using Sparse24D64 = ForwardConfig<64, 64, 3, 96, 4, 1, true, true, 0, Sparse24>;
using Sparse24D128 = ForwardConfig<128, 128, 2, 128, 2, 1, true, true, 0, Sparse24>;
/// Without turns: 7 % slower at 8192 keys, 3 % faster at 16384.
using Sparse24D128Long = ForwardConfig<128, 128, 2, 128, 2, 1, true, false, 0, Sparse24>;
using Sparse24D128V64 = ForwardConfig<128, 64, 2, 128, 2, 1, true, true, 0, Sparse24>;

}  // namespace sfa::flash
