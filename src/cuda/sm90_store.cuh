// Ways out of a block on sm_90a beside tensor TMA: fragments into swizzled shared memory, bulk copies to global memory,
// and counters in global memory that order the writes of different blocks.
// Reference: PTX ISA, "stmatrix", "cp.async.bulk", "ld", "st" (acquire and release), "griddepcontrol".
#pragma once

#include <cstdint>

#include "cuda/sm90_barrier.cuh"
#include "cuda/sm90_tma.cuh"

namespace sfa::sm90 {

/// Four 8x8 matrices of bf16. Lane l gives the shared address of row l % 8 of matrix l / 8 (16 bytes); register i
/// holds, of matrix i, row lane / 4 and columns 2 (lane % 4), + 1.
__device__ __forceinline__ void store_matrix_x4(std::uint32_t address, std::uint32_t r0, std::uint32_t r1,
                                                std::uint32_t r2, std::uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r0), "r"(r1),
               "r"(r2), "r"(r3)
               : "memory");
}

/// A box from shared to global memory that nobody reads soon: it is the first to leave L2.
__device__ __forceinline__ void tma_store_4d_streaming(const CUtensorMap* map, const void* source, int c0, int c1,
                                                       int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%2, %3, %4, %5}], [%1], %6;" ::"l"(
          map),
      "r"(smem_address(source)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(kEvictFirst)
      : "memory");
}

/// `bytes` contiguous bytes from shared to global memory, as part of the issuing thread's current bulk group.
__device__ __forceinline__ void tma_store_bulk(void* destination, const void* source, std::uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(destination),
               "r"(smem_address(source)), "r"(bytes)
               : "memory");
}

/// Orders ordinary and asynchronous accesses of this thread against each other, in every state space.
__device__ __forceinline__ void fence_async_all() {
  asm volatile("fence.proxy.async;" ::: "memory");
}

__device__ __forceinline__ int load_acquire(const int* counter) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(int* counter, int value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}

/// Programmatic dependent launch: the next kernel of the stream may start its prologue / wait for the previous kernel's
/// results. Both do nothing in kernels launched the ordinary way.
__device__ __forceinline__ void launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ __forceinline__ void wait_for_previous_kernel() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

}  // namespace sfa::sm90
