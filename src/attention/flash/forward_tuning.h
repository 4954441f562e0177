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
/// Without turns: up to 1 % slower at every length from 1024 to 65536 (at d = 64 3 to 12 %).
using DenseD128 = ForwardConfig<128, 128, 2, 128, 2, 1, true, true, 0, DenseRegisters>;
// Sizes between two instances run on the next one, filled up with zeros by TMA.
using DenseD32 = ForwardConfig<32, 32, 3, 128, 4, 1, true, true, 0, DenseShared>;
using DenseD32V64 = ForwardConfig<32, 64, 3, 128, 4, 1, true, true, 0, DenseShared>;
using DenseD64V128 = ForwardConfig<64, 128, 2, 128, 2, 1, true, true, 0, DenseRegisters>;
using DenseD96 = ForwardConfig<96, 96, 2, 128, 2, 1, true, true, 0, DenseRegisters>;
using DenseD192 = ForwardConfig<192, 192, 2, 112, 2, 1, true, true, 0, DenseShared>;
using DenseD256 = ForwardConfig<256, 256, 2, 64, 2, 1, true, false, 0, DenseShared>;
using DenseD128V64 = ForwardConfig<128, 64, 2, 128, 2, 1, true, true, 0, DenseRegisters>;
/// Short rows as of DenseD64Short: 11 % faster at 1024, 2 % slower at 2048.
using Sparse24D64Short = ForwardConfig<64, 64, 2, 64, 4, 2, false, false, 0, Sparse24>;
using Sparse24D64 = ForwardConfig<64, 64, 3, 96, 4, 1, true, true, 0, Sparse24>;
/// Beside 96 keys: 4 % slower at 1024 keys, 1 % faster at 4096, 3 % at 8192, 4 % beyond.
using Sparse24D64Long = ForwardConfig<64, 64, 3, 112, 4, 1, true, true, 0, Sparse24>;
/// With turns: as fast at 1024 keys, 1 % slower at 4096 and 8192, 2 % beyond.
using Sparse24D128 = ForwardConfig<128, 128, 2, 128, 2, 1, true, false, 0, Sparse24>;
/// Three warpgroups a block of keys: 5 % slower at 8192 keys, 2.5 % faster at 65536.
using Sparse24D128Longest = ForwardConfig<128, 128, 3, 80, 2, 1, false, true, 0, Sparse24>;
using Sparse24D128V64 = ForwardConfig<128, 64, 2, 128, 2, 1, true, true, 0, Sparse24>;

}  // namespace sfa::flash
