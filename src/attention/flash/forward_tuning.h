// Which configuration of the forward core serves which head size. docs/kernels.md has the measurements.
#pragma once

#include "attention/flash/forward_core.cuh"

namespace sfa::flash {

//                                      Dqk Dv  warpgroups keys stages blocks/SM overlap turns FMA-period product
using DenseD64 = ForwardConfig<64, 64, 3, 128, 4, 1, true, true, 0, DenseShared>;
using DenseD64Short = ForwardConfig<64, 64, 2, 64, 4, 2, false, false, 0, DenseShared>;
using DenseD128 = ForwardConfig<128, 128, 2, 128, 2, 1, true, true, 0, DenseRegisters>;
using Sparse24D64 = ForwardConfig<64, 64, 3, 96, 4, 1, true, true, 0, Sparse24>;
using Sparse24D128 = ForwardConfig<128, 128, 2, 128, 2, 1, true, true, 0, Sparse24>;

}  // namespace sfa::flash
