// sum_add: one block; every thread sums a fixed stride, then a tree over the block. Inputs are at most a few hundred
// thousand losses.
#include "cuda/launch.h"
#include "cuda/vector.cuh"
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

template <class T>
__global__ void add_kernel(const T* __restrict__ from, float* __restrict__ to, std::int64_t n) {
  const std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (i < n) to[i] += to_float(from[i]);
}

}  // namespace

void add_to(Context& ctx, const Tensor& from, const Tensor& to) {
  const std::int64_t n = to.numel();
  for_float_type(from.dtype, "add_to", [&]<class T>() {
    add_kernel<<<blocks_for(n, kThreads), kThreads, 0, ctx.cuda().stream>>>(data_of<const T>(from), data_of<float>(to),
                                                                            n);
  });
  SFA_LAUNCH_CHECK();
}

void sum_add(Context& ctx, const Tensor& x, const Tensor& total) {
  sum_kernel<<<1, kThreads, 0, ctx.cuda().stream>>>(x.as<float>(), x.numel(), static_cast<double*>(total.data));
  SFA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace sfa::cuda_ops
