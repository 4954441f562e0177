// Host side of a launch: picking the kernel by dtype, counting blocks. For .cu files only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/tensor.h"
#include "cuda/state.h"

namespace sfa {

/// Calls f.operator()<float>() or f.operator()<__nv_bfloat16>().
template <class F>
void for_float_type(DType type, const char* what, F&& f) {
  if (type == DType::f32) return f.template operator()<float>();
  if (type == DType::bf16) return f.template operator()<__nv_bfloat16>();
  fail("internal error: {} has no CUDA kernel for {}; f32 and bf16 exist", what, name_of(type));
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// The grid's first dimension for `work` items of `per_block`.
inline unsigned blocks_for(std::int64_t work, std::int64_t per_block) {
  const std::int64_t n = ceil_div(work, per_block);
  require(n <= 0x7fffffff, "internal error: {} blocks of a CUDA grid", n);
  return static_cast<unsigned>(n);
}

template <class T>
T* data_of(const Tensor& t) {
  return static_cast<T*>(t.data);
}

}  // namespace sfa

/// A launch's own errors (shape, shared memory); faults of the kernel surface at the next synchronisation.
#define SFA_LAUNCH_CHECK() SFA_CUDA_CHECK(cudaGetLastError())
