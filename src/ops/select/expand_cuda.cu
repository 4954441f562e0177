// select_expand: one warp a row clears it and scatters its k values.
#include <cuda_bf16.h>

#include "cuda/state.h"
#include "ops/select/select_cuda.h"

namespace sfa::cuda_ops {
namespace {

struct Expand {
  std::int64_t rows, T, heads, D, k;
  std::int64_t value_batch, value_token, value_head, index_batch, index_token, index_head;
  std::int64_t dense_batch, dense_token, dense_head;
};

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
  const unsigned blocks = static_cast<unsigned>((e.rows * 32 + 255) / 256);
  const std::uint8_t* support = indices.as<std::uint8_t>();
  if (dense.dtype == DType::bf16)
    expand_kernel<<<blocks, 256, 0, ctx.cuda().stream>>>(e, static_cast<const __nv_bfloat16*>(values.data), support,
                                                         static_cast<__nv_bfloat16*>(dense.data));
  else
    expand_kernel<<<blocks, 256, 0, ctx.cuda().stream>>>(e, values.as<float>(), support, dense.as<float>());
  SFA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace sfa::cuda_ops
