// Tensor TMA: asynchronous copies of rectangular boxes between global and shared memory, one instruction a box.
// Parts of a box that lie outside the tensor read as zero and are not written. Coordinates are in elements, innermost
// dimension first, in the order of the tensor map (cuda/tensor_map.h builds one).
// Reference: PTX ISA, "cp.async.bulk.tensor", "cp.reduce.async.bulk.tensor".
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/sm90_barrier.cuh"

namespace sfa::sm90 {

/// L2 eviction policies in the encoding that createpolicy yields for a fraction of 1.
inline constexpr std::uint64_t kEvictNormal = 0x1000000000000000ull;
inline constexpr std::uint64_t kEvictFirst = 0x12F0000000000000ull;
inline constexpr std::uint64_t kEvictLast = 0x14F0000000000000ull;

__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// Box at (c0, c1, c2) of a 3-D tensor into shared memory; completes `bytes` of the barrier's expectation.
__device__ __forceinline__ void tma_load_3d(void* destination, const CUtensorMap* map, Barrier* barrier, int c0, int c1,
                                            int c2, std::uint64_t policy = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(smem_address(destination)),
      "l"(map), "r"(smem_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void tma_load_4d(void* destination, const CUtensorMap* map, Barrier* barrier, int c0, int c1,
                                            int c2, int c3, std::uint64_t policy = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(smem_address(destination)),
      "l"(map), "r"(smem_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(policy)
      : "memory");
}

/// `bytes` contiguous bytes (a multiple of 16, 16-byte aligned on both sides).
__device__ __forceinline__ void tma_load_bulk(void* destination, const void* source, std::uint32_t bytes,
                                              Barrier* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   smem_address(destination)),
               "l"(source), "r"(bytes), "r"(smem_address(barrier))
               : "memory");
}

/// Shared memory to global; the writing threads must have executed fence_async_shared before.
__device__ __forceinline__ void tma_store_4d(const CUtensorMap* map, const void* source, int c0, int c1, int c2,
                                             int c3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
               "r"(smem_address(source)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
               : "memory");
}

/// Adds a box to global memory element by element (f32 or bf16 as the map says); the order of additions is not fixed.
__device__ __forceinline__ void tma_reduce_add_4d(const CUtensorMap* map, const void* source, int c0, int c1, int c2,
                                                  int c3) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
      "r"(smem_address(source)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

/// Adds `bytes` contiguous bytes of f32 from shared to global memory; the order of additions is not fixed.
__device__ __forceinline__ void tma_reduce_add_bulk_f32(void* destination, const void* source, std::uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(destination),
               "r"(smem_address(source)), "r"(bytes)
               : "memory");
}

/// Stores and reductions are grouped by the issuing thread: commit closes a group; wait_read returns when at most
/// kPending groups still read shared memory, wait when at most kPending are unfinished.
__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
template <int kPending>
__device__ __forceinline__ void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace sfa::sm90
