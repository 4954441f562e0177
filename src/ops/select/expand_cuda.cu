// select_expand. A thread writes eight neighbouring features of a row in one piece: zeros, and those of the row's k
// values that lie among them (every thread of a row reads all k indices, which the cache serves to them together). Rows
// that are not made of aligned pieces of eight take a warp each, which clears the row and scatters its values.
#include <cuda_bf16.h>

#include "cuda/state.h"
#include "cuda/vector.cuh"
#include "ops/select/select_cuda.h"

namespace sfa::cuda_ops {
namespace {

struct Expand {
  std::int64_t rows, T, heads, D, k;
  std::int64_t value_batch, value_token, value_head, index_batch, index_token, index_head;
  std::int64_t dense_batch, dense_token, dense_head;
};

constexpr int kEach = 8;

template <class T>
__global__ void expand_pieces_kernel(Expand e, const T* values, const std::uint8_t* indices, T* dense) {
  const int pieces = static_cast<int>(e.D) / kEach;
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, row = thread / pieces;
  if (row >= e.rows) return;
  const int first = static_cast<int>(thread % pieces) * kEach;
  const std::int64_t h = row % e.heads, t = row / e.heads % e.T, b = row / e.heads / e.T;
  const T* own_values = values + b * e.value_batch + t * e.value_token + h * e.value_head;
  const std::uint8_t* own_indices = indices + b * e.index_batch + t * e.index_token + h * e.index_head;
  Vector<T, kEach> piece;
#pragma unroll
  for (int i = 0; i < kEach; ++i) piece.v[i] = T(0.0f);
  for (int n = 0; n < static_cast<int>(e.k); ++n) {
    const int place = static_cast<int>(own_indices[n]) - first;
    if (place < 0 || place >= kEach) continue;
    const T value = own_values[n];
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (i == place) piece.v[i] = value;
  }
  *reinterpret_cast<Vector<T, kEach>*>(dense + b * e.dense_batch + t * e.dense_token + h * e.dense_head + first) =
      piece;
}

template <class T>
__global__ void expand_kernel(Expand e, const T* values, const std::uint8_t* indices, T* dense) {
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (row >= e.rows) return;
  const std::int64_t h = row % e.heads, t = row / e.heads % e.T, b = row / e.heads / e.T;
  T* out = dense + b * e.dense_batch + t * e.dense_token + h * e.dense_head;
  for (std::int64_t d = lane; d < e.D; d += 32) out[d] = T(0.0f);
  __syncwarp();
  const std::int64_t v = b * e.value_batch + t * e.value_token + h * e.value_head;
  const std::int64_t i = b * e.index_batch + t * e.index_token + h * e.index_head;
  for (std::int64_t n = lane; n < e.k; n += 32) out[indices[i + n]] = values[v + n];
}

template <class T>
void launch(Context& ctx, const Expand& e, const T* values, const std::uint8_t* indices, T* dense) {
  constexpr std::int64_t kThreads = 256;
  const auto in_pieces = [](std::int64_t n) { return n % kEach == 0; };
  const bool pieces = in_pieces(e.D) && in_pieces(e.dense_batch) && in_pieces(e.dense_token) &&
                      in_pieces(e.dense_head) && reinterpret_cast<std::uintptr_t>(dense) % 16 == 0;
  const std::int64_t threads = pieces ? e.rows * (e.D / kEach) : e.rows * 32;
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  if (pieces)
    expand_pieces_kernel<<<blocks, kThreads, 0, ctx.cuda().stream>>>(e, values, indices, dense);
  else
    expand_kernel<<<blocks, kThreads, 0, ctx.cuda().stream>>>(e, values, indices, dense);
}

}  // namespace

void select_expand(Context& ctx, const Tensor& values, const Tensor& indices, const Tensor& dense) {
  const Expand e{dense.dim(0) * dense.dim(1) * dense.dim(2),
                 dense.dim(1),
                 dense.dim(2),
                 dense.dim(3),
                 values.dim(3),
                 values.stride[0],
                 values.stride[1],
                 values.stride[2],
                 indices.stride[0],
                 indices.stride[1],
                 indices.stride[2],
                 dense.stride[0],
                 dense.stride[1],
                 dense.stride[2]};
  const std::uint8_t* support = indices.as<std::uint8_t>();
  if (dense.dtype == DType::bf16)
    launch(ctx, e, static_cast<const bf16*>(values.data), support, static_cast<bf16*>(dense.data));
  else
    launch(ctx, e, values.as<float>(), support, dense.as<float>());
  SFA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace sfa::cuda_ops
