// Which instances of the sm_80 backward kernels serve which head sizes; docs/kernels_sm80.md has the measurements.
// Shared memory stays below 99 KiB, so that one block fits on every card; the blocks an SM are those of sm_80 and
// sm_90.
#pragma once

#include "attention/flash/sm80_backward_keys.cuh"
#include "attention/flash/sm80_backward_queries.cuh"

namespace sfa::flash {

// dK and dV together are (Dqk + Dv) / 2 registers for every 16 keys of a warp; up to 64 features there is room for 32
// keys, beyond 128 for one of the two.
//                               Dqk  Dv warps atoms rows stages blocks/SM
using Sm80KeysD32 = Sm80KeysConfig<32, 32, 4, 2, 64, 2, 2>;
using Sm80KeysD32V64 = Sm80KeysConfig<32, 64, 4, 2, 32, 2, 2>;
using Sm80KeysD64 = Sm80KeysConfig<64, 64, 4, 2, 32, 2, 2>;
using Sm80KeysD64V128 = Sm80KeysConfig<64, 128, 4, 1, 64, 2, 2>;
using Sm80KeysD96 = Sm80KeysConfig<96, 96, 4, 1, 64, 2, 2>;
using Sm80KeysD128V64 = Sm80KeysConfig<128, 64, 4, 1, 64, 2, 2>;
using Sm80KeysD128 = Sm80KeysConfig<128, 128, 4, 1, 64, 2, 2>;
using Sm80KeysD192 = Sm80KeysConfig<192, 192, 4, 1, 64, 1, 2, Sm80Sums::keys>;
using Sm80ValuesD192 = Sm80KeysConfig<192, 192, 4, 1, 64, 1, 2, Sm80Sums::values>;
using Sm80KeysD256 = Sm80KeysConfig<256, 256, 4, 1, 32, 1, 2, Sm80Sums::keys>;
using Sm80ValuesD256 = Sm80KeysConfig<256, 256, 4, 1, 32, 2, 2, Sm80Sums::values>;

//                                  Dqk  Dv warps atoms keys stages blocks/SM
using Sm80QueriesD32 = Sm80QueriesConfig<32, 32, 4, 2, 64, 2, 2>;
using Sm80QueriesD32V64 = Sm80QueriesConfig<32, 64, 4, 2, 64, 2, 2>;
using Sm80QueriesD64 = Sm80QueriesConfig<64, 64, 4, 2, 48, 2, 2>;
using Sm80QueriesD64V128 = Sm80QueriesConfig<64, 128, 4, 2, 48, 2, 2>;
using Sm80QueriesD96 = Sm80QueriesConfig<96, 96, 4, 2, 32, 2, 2>;
using Sm80QueriesD128V64 = Sm80QueriesConfig<128, 64, 4, 2, 32, 2, 2>;
using Sm80QueriesD128 = Sm80QueriesConfig<128, 128, 4, 2, 32, 2, 2>;
using Sm80QueriesD192 = Sm80QueriesConfig<192, 192, 4, 1, 48, 1, 2>;
using Sm80QueriesD256 = Sm80QueriesConfig<256, 256, 4, 1, 32, 1, 2>;

}  // namespace sfa::flash
