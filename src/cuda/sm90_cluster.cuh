// Thread block clusters on sm_90a: blocks that run at the same time on neighbouring multiprocessors, can copy into each
// other's shared memory and arrive at each other's barriers. kBlocks = 1 makes every call the one of a lone block.
// Reference: PTX ISA, "barrier.cluster", "mapa", "cp.async.bulk.tensor" (.multicast::cluster).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/sm90_barrier.cuh"
#include "cuda/sm90_tma.cuh"

namespace sfa::sm90 {

/// This block's place in its cluster.
__device__ __forceinline__ int cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

/// Every thread of the cluster; memory accesses before it are visible behind it.
template <int kBlocks>
__device__ __forceinline__ void cluster_sync() {
  if constexpr (kBlocks > 1)
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  else
    __syncthreads();
}

/// One arrival at the barrier of the same address in every block of the cluster. It orders nothing between the blocks'
/// ordinary accesses (that would take a fence of the whole device): for buffers that only TMA and wgmma touch.
template <int kBlocks>
__device__ __forceinline__ void barrier_arrive_everywhere(Barrier* barrier) {
  if constexpr (kBlocks == 1) {
    barrier_arrive(barrier);
  } else {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
      asm volatile(
          "{\n.reg .b32 remote;\n"
          "mapa.shared::cluster.u32 remote, %0, %1;\n"
          "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(smem_address(barrier)),
          "r"(block)
          : "memory");
  }
}

/// Box at (c0, c1, c2) of a 3-D tensor to the same place in every block of the cluster; completes its bytes at the
/// barrier of the same address in each of them.
template <int kBlocks>
__device__ __forceinline__ void tma_load_everywhere_3d(void* destination, const CUtensorMap* map, Barrier* barrier,
                                                       int c0, int c1, int c2, std::uint64_t policy) {
  if constexpr (kBlocks == 1)
    tma_load_3d(destination, map, barrier, c0, c1, c2, policy);
  else
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint"
        " [%0], [%1, {%3, %4, %5}], [%2], %6, %7;" ::"r"(smem_address(destination)),
        "l"(map), "r"(smem_address(barrier)), "r"(c0), "r"(c1), "r"(c2),
        "h"(static_cast<std::uint16_t>((1 << kBlocks) - 1)), "l"(policy)
        : "memory");
}

}  // namespace sfa::sm90
