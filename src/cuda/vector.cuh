// Elements of any float type as float, and vectors of N of them in as few memory instructions as the alignment allows.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace sfa {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(bf16 x) {
  return __bfloat162float(x);
}

/// Rounds to the stored type (nearest, ties to even).
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

/// The value of x once stored as T.
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

constexpr std::size_t vector_alignment(std::size_t bytes) {
  return bytes >= 16 ? 16 : bytes;
}

template <class T, int N>
struct alignas(vector_alignment(N * sizeof(T))) Vector {
  T v[N];
};

/// to[i] = from[i]; `from` must be aligned to min(16, N * sizeof(T)) bytes.
template <int N, class T>
__device__ __forceinline__ void load(float (&to)[N], const T* from) {
  const Vector<T, N> pack = *reinterpret_cast<const Vector<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_float(pack.v[i]);
}

/// to[i] = rounded from[i]; `to` must be aligned to min(16, N * sizeof(T)) bytes.
template <int N, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[N]) {
  Vector<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(from[i]);
  *reinterpret_cast<Vector<T, N>*>(to) = pack;
}

/// True when the pointer and every row of `columns` elements behind it can be read in vectors of eight.
template <class... Pointers>
inline bool vectors_of_eight(std::int64_t columns, const Pointers*... pointers) {
  return columns % 8 == 0 && (((reinterpret_cast<std::uintptr_t>(pointers) & 15u) == 0) && ...);
}

}  // namespace sfa
