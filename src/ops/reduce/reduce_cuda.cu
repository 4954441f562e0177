// sum_add: one block; every thread sums a fixed stride, then a tree over the block. Inputs are at most a few hundred
// thousand losses.
#include "cuda/state.h"
#include "ops/reduce/reduce_cuda.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 1024;

__global__ void sum_kernel(const float* x, std::int64_t n, double* total) {
  __shared__ double part[kThreads];
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += kThreads) sum += static_cast<double>(x[i]);
  part[threadIdx.x] = sum;
  __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) *total += part[0];
}

}  // namespace

void sum_add(Context& ctx, const Tensor& x, const Tensor& total) {
  sum_kernel<<<1, kThreads, 0, ctx.cuda().stream>>>(x.as<float>(), x.numel(), static_cast<double*>(total.data));
  SFA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace sfa::cuda_ops
