// Full rows of sparse ones, for blocks of the preparing kernel: a block fills some rows with zeros in shared memory,
// scatters their values there, and writes them in pieces of 16 bytes, neighbours to neighbours. A kept zero is written
// as -0, so that a feature is kept if and only if its bits are not zero (backward_support.cuh).
#pragma once

#include <cstdint>

#include "attention/flash/flash_params.h"
#include "attention/flash/kept_features.h"

namespace sfa::flash {

/// Bytes of rows that a block holds.
inline constexpr int kExpandBytes = 16384;

/// Rows a block, a multiple of 8: then what it reads is aligned like the whole.
__host__ __device__ constexpr int expand_rows_per_block(int D) {
  return kExpandBytes / 2 / D / 8 * 8;
}

/// Blocks for `rows` rows of D features.
__host__ __device__ constexpr std::int64_t expand_blocks(std::int64_t rows, int D) {
  return (rows + expand_rows_per_block(D) - 1) / expand_rows_per_block(D);
}

struct ExpandRows {
  KeptFeatures from;
  void* to;
  Strides stride;
  int tokens, heads, D;
};

/// Eight values from element `at` of the block's on, into rows of shared memory.
__device__ __forceinline__ void scatter_eight(unsigned short* rows, const KeptFeatures& from, std::int64_t first,
                                              unsigned at, unsigned count, int D) {
  const auto* values = static_cast<const unsigned short*>(from.values) + first + at;
  const std::uint8_t* indices = from.indices + first + at;
  unsigned short x[8];
  std::uint8_t d[8];
  if (at + 8 <= count) {
    *reinterpret_cast<uint4*>(x) = __ldg(reinterpret_cast<const uint4*>(values));
    *reinterpret_cast<uint2*>(d) = __ldg(reinterpret_cast<const uint2*>(indices));
  } else {
#pragma unroll
    for (unsigned i = 0; i < 8; ++i) {
      x[i] = at + i < count ? values[i] : 0;
      d[i] = at + i < count ? indices[i] : 0;
    }
  }
  const unsigned k = static_cast<unsigned>(from.k);
  unsigned row = at / k, n = at - row * k;
#pragma unroll
  for (unsigned i = 0; i < 8; ++i) {
    if (at + i < count) rows[row * D + d[i]] = x[i] == 0 ? 0x8000 : x[i];
    if (++n == k) ++row, n = 0;
  }
}

/// Block `block` of kThreads threads; `shared` holds kExpandBytes. kD: features, or 0 when they are another number.
template <int kThreads, int kD>
__device__ __forceinline__ void expand_rows(const ExpandRows& job, std::int64_t all_rows, int block, uint4* shared) {
  const int D = kD > 0 ? kD : job.D, chunks = D / 8;
  const std::int64_t first = static_cast<std::int64_t>(block) * expand_rows_per_block(D);
  const int rows = static_cast<int>(min(all_rows - first, static_cast<std::int64_t>(expand_rows_per_block(D))));
  for (int i = threadIdx.x; i < rows * chunks; i += kThreads) shared[i] = make_uint4(0, 0, 0, 0);
  __syncthreads();
  const unsigned count = static_cast<unsigned>(rows * job.from.k);
  for (unsigned at = threadIdx.x * 8; at < count; at += kThreads * 8)
    scatter_eight(reinterpret_cast<unsigned short*>(shared), job.from, first * job.from.k, at, count, D);
  __syncthreads();
  for (int i = threadIdx.x; i < rows * chunks; i += kThreads) {
    const unsigned row = static_cast<unsigned>(first) + i / chunks, token = row / job.heads;
    const unsigned batch = token / job.tokens;
    auto* to = static_cast<unsigned short*>(job.to) + batch * job.stride.batch +
               (token - batch * job.tokens) * job.stride.token + (row - token * job.heads) * job.stride.head;
    reinterpret_cast<uint4*>(to)[i % chunks] = shared[i];
  }
}

/// The same for either width that there are instances for, or any other.
template <int kThreads>
__device__ __forceinline__ void expand_any_rows(const ExpandRows& job, std::int64_t all_rows, int block,
                                                uint4* shared) {
  if (job.D == 64)
    expand_rows<kThreads, 64>(job, all_rows, block, shared);
  else if (job.D == 128)
    expand_rows<kThreads, 128>(job, all_rows, block, shared);
  else
    expand_rows<kThreads, 0>(job, all_rows, block, shared);
}

}  // namespace sfa::flash
