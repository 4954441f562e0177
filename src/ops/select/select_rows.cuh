// Rows of features as selection sees them: a [B, T, heads, D] view whose rows are found by their running number.
#pragma once

#include "core/tensor.h"
#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace sfa::cuda_ops {

/// 32-bit arithmetic: a division of 64-bit numbers takes longer than the selection of a row.
template <class T>
struct RowView {
  T* data;
  std::uint32_t steps, heads;
  std::int64_t stride_b, stride_t, stride_h;
  bool flat;  // batch entries follow each other like tokens
  __device__ __forceinline__ T* row(std::uint32_t n) const {
    const std::uint32_t token = n / heads, h = n - token * heads;
    if (flat) return data + token * stride_t + h * stride_h;
    const std::uint32_t b = token / steps, t = token - b * steps;
    return data + b * stride_b + t * stride_t + h * stride_h;
  }
};

template <class T>
RowView<T> row_view(const Tensor& t) {
  const std::int64_t rows = t.dim(0) * t.dim(1) * t.dim(2);
  require(rows < (std::int64_t{1} << 31), "internal error: selection over {} rows", rows);
  return {.data = data_of<T>(t),
          .steps = static_cast<std::uint32_t>(t.dim(1)),
          .heads = static_cast<std::uint32_t>(t.dim(2)),
          .stride_b = t.stride[0],
          .stride_t = t.stride[1],
          .stride_h = t.stride[2],
          .flat = t.stride[0] == t.dim(1) * t.stride[1]};
}

/// True when every row can be read in vectors of `each` elements, or when there is no tensor.
inline bool aligned_rows(const Tensor& t, std::int64_t each) {
  if (t.empty()) return true;
  const std::uintptr_t bytes = vector_alignment(static_cast<std::size_t>(each) * size_of(t.dtype));
  return t.dim(3) % each == 0 && t.stride[0] % each == 0 && t.stride[1] % each == 0 && t.stride[2] % each == 0 &&
         reinterpret_cast<std::uintptr_t>(t.data) % bytes == 0;
}

}  // namespace sfa::cuda_ops
