// Which instance of the sm_80 forward serves which head sizes; docs/kernels_sm80.md has the measurements. Sizes between
// two instances are filled up with zeros to the next one. Shared memory stays below 99 KiB, so that one block fits on
// every card; the blocks an SM are those of sm_80 and sm_90.
#pragma once

#include "attention/flash/sm80_forward.cuh"

namespace sfa::flash {

// Two atoms of 16 rows a warp halve what the products read from shared memory; beyond 128 features O leaves room for
// one.
//                                        Dqk  Dv warps atoms keys blocks/SM product
using Sm80ForwardD32 = Sm80ForwardConfig<32, 32, 4, 2, 64, 3, Sm80DenseScores>;
using Sm80ForwardD32V64 = Sm80ForwardConfig<32, 64, 4, 2, 64, 2, Sm80DenseScores>;
using Sm80ForwardD64 = Sm80ForwardConfig<64, 64, 4, 2, 96, 2, Sm80DenseScores>;
using Sm80ForwardD64V128 = Sm80ForwardConfig<64, 128, 4, 2, 48, 2, Sm80DenseScores>;
using Sm80ForwardD96 = Sm80ForwardConfig<96, 96, 4, 2, 64, 2, Sm80DenseScores>;
using Sm80ForwardD128V64 = Sm80ForwardConfig<128, 64, 4, 2, 64, 2, Sm80DenseScores>;
using Sm80ForwardD128 = Sm80ForwardConfig<128, 128, 4, 2, 48, 2, Sm80DenseScores>;
using Sm80ForwardD192 = Sm80ForwardConfig<192, 192, 4, 1, 48, 2, Sm80DenseScores>;
using Sm80ForwardD256 = Sm80ForwardConfig<256, 256, 4, 1, 32, 2, Sm80DenseScores>;

using Sm80Sparse24D32 = Sm80ForwardConfig<32, 32, 4, 2, 64, 3, Sm80Sparse24Scores>;
using Sm80Sparse24D32V64 = Sm80ForwardConfig<32, 64, 4, 2, 64, 2, Sm80Sparse24Scores>;
using Sm80Sparse24D64 = Sm80ForwardConfig<64, 64, 4, 2, 96, 2, Sm80Sparse24Scores>;
using Sm80Sparse24D64V128 = Sm80ForwardConfig<64, 128, 4, 2, 48, 2, Sm80Sparse24Scores>;
using Sm80Sparse24D96 = Sm80ForwardConfig<96, 96, 4, 2, 64, 2, Sm80Sparse24Scores>;
using Sm80Sparse24D128V64 = Sm80ForwardConfig<128, 64, 4, 2, 64, 2, Sm80Sparse24Scores>;
using Sm80Sparse24D128 = Sm80ForwardConfig<128, 128, 4, 2, 48, 2, Sm80Sparse24Scores>;
using Sm80Sparse24D192 = Sm80ForwardConfig<192, 192, 4, 1, 48, 2, Sm80Sparse24Scores>;
using Sm80Sparse24D256 = Sm80ForwardConfig<256, 256, 4, 1, 32, 2, Sm80Sparse24Scores>;

}  // namespace sfa::flash
