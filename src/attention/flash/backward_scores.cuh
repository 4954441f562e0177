// The recomputed product of queries and keys, S^T = K Q^T, as a policy of the backward core: 64 keys of a warpgroup
// times the rows of a query tile. Keys are the A operand, so that P^T and dS^T come out as the register operands of dV
// and dK. (A 2:4 sparse policy therefore wants the keys in compressed form: loaded into registers once a task, in
// `begin`.)
#pragma once

#include <cstdint>

#include "attention/flash/backward_tuning.h"
#include "cuda/sm90.cuh"

namespace sfa::flash {

/// kDim features; both operands in shared memory, panels of 64 features, 128-byte swizzle. Also serves dP^T = V dO^T.
template <int kDim, int kRows>
struct DenseScores {
  static __device__ __forceinline__ void issue(float (&s)[kRows / 2], std::uint32_t keys, std::uint32_t queries) {
    const std::uint64_t a = sm90::swizzle128_descriptor(keys), b = sm90::swizzle128_descriptor(queries);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step)
      sm90::Wgmma<kRows>::ss(s, sm90::descriptor_advance(a, (step / 4) * kBackwardKeys * 128 + (step % 4) * 32),
                             sm90::descriptor_advance(b, (step / 4) * kRows * 128 + (step % 4) * 32), step > 0);
  }
};

}  // namespace sfa::flash
