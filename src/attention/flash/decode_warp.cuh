// What a warp does by itself when decoding: asynchronous copies into its own buffers, 16-bit fragments out of shared
// memory, products of 16 x 8 x 16 on tensor cores. Every instruction exists from compute capability 8.0 on.
// Reference: PTX ISA, "cp.async", "ldmatrix", "movmatrix", "mma.m16n8k16". In the fragments q = lane / 4, r = lane % 4.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace sfa::flash {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes past the L1 cache; the last 16 - bytes of them are zeroes and not read.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Four 8 x 8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8. Register m holds
/// elements 2r and 2r + 1 of row q of matrix m.
__device__ __forceinline__ void load_matrices(std::uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
/// The same transposed: register m holds rows 2r and 2r + 1 of column q of matrix m.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
/// Elements 2r, 2r + 1 of row q become elements q of rows 2r, 2r + 1.
__device__ __forceinline__ std::uint32_t transpose_matrix(std::uint32_t x) {
  std::uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

/// c += a b: a [16 x 16] (rows q, q + 8; columns 2r.., 2r + 8..), b [16 x 8] (rows 2r.., 2r + 8..; column q),
/// c [16 x 8] (rows q, q + 8; columns 2r, 2r + 1).
__device__ __forceinline__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float low_bf16(std::uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_bf16(std::uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

/// Four signed bytes -> bytes 0 and 2 (1 and 3) as a pair of bf16, exactly: |x| < 128 is 128 + (low seven bits) minus
/// 128 or 256, as the sign bit says; all three are bf16 numbers with the byte in their last bits.
__device__ __forceinline__ std::uint32_t spread_bytes_bf16(std::uint32_t spread) {
  const std::uint32_t magnitude = (spread & 0x007f007fu) | 0x43004300u, minus = (spread & 0x00800080u) | 0xc300c300u;
  std::uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(magnitude), "r"(0x3f803f80u), "r"(minus));
  return sum;
}
__device__ __forceinline__ std::uint32_t even_bytes_bf16(std::uint32_t four) {
  return spread_bytes_bf16(four);
}
__device__ __forceinline__ std::uint32_t odd_bytes_bf16(std::uint32_t four) {
  return spread_bytes_bf16(four >> 8);
}

}  // namespace sfa::flash
