// Synchronisation on sm_90a: mbarriers in shared memory, named barriers, proxy fences, register reallocation.
// Reference: PTX ISA, "mbarrier", "barrier", "fence.proxy.async", "setmaxnreg".
#pragma once

#include <cstdint>

namespace sfa::sm90 {

/// Address in the shared window, as every PTX instruction below wants it.
__device__ __forceinline__ std::uint32_t smem_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// An mbarrier object: 8 bytes of shared memory. A fresh barrier is in phase 0; wait(parity) returns once the phase of
/// that parity has completed, so a consumer starts with parity 0 and a producer of empty buffers with parity 1.
using Barrier = std::uint64_t;

__device__ __forceinline__ void barrier_init(Barrier* barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(arrivals) : "memory");
}

/// Makes initialised barriers visible to the asynchronous proxy (TMA); one thread, before the __syncthreads that
/// follows.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(barrier)) : "memory");
}

/// One arrival that also adds `bytes` to what the asynchronous copies of this phase have to deliver.
__device__ __forceinline__ void barrier_expect(Barrier* barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(barrier)), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ bool barrier_try_wait(Barrier* barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(smem_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void barrier_wait(Barrier* barrier, std::uint32_t parity) {
  while (!barrier_try_wait(barrier, parity)) {
  }
}

/// Position in a ring of kStages buffers: `index` selects the buffer and its barriers, `parity` is the consumer's wait
/// parity (the producer waits on the empty barrier with parity ^ 1).
template <int kStages>
struct RingState {
  std::uint32_t index = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++index == kStages) {
      index = 0;
      parity ^= 1;
    }
  }
};

/// RingState in one register, for kernels that are short of them: index() selects the buffer and its barriers, parity()
/// is the consumer's wait parity (the producer waits on the empty barrier with parity() ^ 1). kStages is a power of
/// two.
template <int kStages>
struct RingCounter {
  static_assert((kStages & (kStages - 1)) == 0, "ring sizes are powers of two");
  std::uint32_t count = 0;

  __device__ __forceinline__ std::uint32_t index() const { return count % kStages; }
  __device__ __forceinline__ std::uint32_t parity() const { return count / kStages & 1; }
  __device__ __forceinline__ void advance() { ++count; }
};

/// bar.sync / bar.arrive on one of the 16 hardware barriers of a block; `threads` counts every thread that takes part.
/// Barrier 0 belongs to __syncthreads.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Orders this thread's ordinary shared-memory accesses before later asynchronous ones (TMA store, wgmma operands).
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Moves registers between warpgroups; every warp of the warpgroup executes it, kRegisters is a multiple of 8
/// in 24..256.
template <int kRegisters>
__device__ __forceinline__ void registers_shrink() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void registers_grow() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// True in exactly one lane of a converged warp.
__device__ __forceinline__ bool elect_one() {
  std::uint32_t chosen;
  asm volatile(
      "{\n.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(chosen));
  return chosen != 0;
}

/// The warpgroup of this thread, as a value that the compiler knows to be uniform in the warp.
__device__ __forceinline__ int warpgroup_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x >> 7), 0);
}

}  // namespace sfa::sm90
