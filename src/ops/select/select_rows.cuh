// Rows of features as selection sees them: a [B, T, heads, D] view whose rows are found by their running number.
#pragma once

#include "core/tensor.h"
#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace sfa::cuda_ops {

template <class T>
struct RowView {
  T* data;
  std::int64_t steps, heads, stride_b, stride_t, stride_h;
  __device__ __forceinline__ T* row(std::int64_t n) const {
    const std::int64_t h = n % heads, t = n / heads % steps, b = n / heads / steps;
    return data + b * stride_b + t * stride_t + h * stride_h;
  }
};

template <class T>
RowView<T> row_view(const Tensor& t) {
  return {data_of<T>(t), t.dim(1), t.dim(2), t.stride[0], t.stride[1], t.stride[2]};
}

/// True when every row can be read in vectors of `each` elements, or when there is no tensor.
inline bool aligned_rows(const Tensor& t, std::int64_t each) {
  if (t.empty()) return true;
  const std::uintptr_t bytes = vector_alignment(static_cast<std::size_t>(each) * size_of(t.dtype));
  return t.dim(3) % each == 0 && t.stride[0] % each == 0 && t.stride[1] % each == 0 && t.stride[2] % each == 0 &&
         reinterpret_cast<std::uintptr_t>(t.data) % bytes == 0;
}

}  // namespace sfa::cuda_ops
