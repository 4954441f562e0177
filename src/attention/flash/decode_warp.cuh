// What a warp does when decoding, beside what cuda/sm80_mma.cuh has: copies of part of 16 bytes, fragments by pointers,
// 8 x 8 matrices turned in registers, bytes to bf16. Every instruction exists from compute capability 8.0 on.
// Reference: PTX ISA, "cp.async", "movmatrix". In the fragments q = lane / 4, r = lane % 4.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/sm80_mma.cuh"

namespace sfa::flash {

using sm80::copy_commit;
using sm80::copy_wait;
using sm80::multiply_add;
using sm80::shared_address;

/// 16 bytes past the L1 cache; the last 16 - bytes of them are zeroes and not read.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

/// ldmatrix: lane i gives the address of row i % 8 of matrix i / 8. Register m holds elements 2r and 2r + 1 of row q of
/// matrix m, or transposed: of rows 2r and 2r + 1 element q.
__device__ __forceinline__ void load_matrices(std::uint32_t (&to)[4], const void* row) {
  sm80::load_matrices(to, shared_address(row));
}
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&to)[4], const void* row) {
  sm80::load_matrices_transposed(to, shared_address(row));
}

/// Elements 2r, 2r + 1 of row q become elements q of rows 2r, 2r + 1.
__device__ __forceinline__ std::uint32_t transpose_matrix(std::uint32_t x) {
  std::uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
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
