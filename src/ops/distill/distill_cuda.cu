// distill_backward: one block a row; every thread takes a fixed stride of it, then a sum in a fixed order.
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ops/distill/distill_cuda.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 128;

// V elements an access; W is a multiple of V.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    distill_kernel(const T* out, const T* teacher, float scale, T* d_out, float* rows, std::int64_t W) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * W;
  float sum = 0;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * V; i < W; i += kThreads * V) {
    float o[V], t[V], d[V];
    load(o, out + row + i);
    load(t, teacher + row + i);
    load(d, d_out + row + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float difference = o[j] - t[j];
      sum += difference * difference;
      d[j] += scale * difference;
    }
    store(d_out + row + i, d);
  }
  sum = block_reduce<kThreads>(sum, Sum{});
  if (threadIdx.x == 0) rows[blockIdx.x] = sum;
}

}  // namespace

void distill_backward(Context& ctx, const DistillBackward& args) {
  for_float_type(args.out.dtype, "distill_backward", [&]<class T>() {
    const T *out = data_of<T>(args.out), *teacher = data_of<T>(args.teacher);
    T* d_out = data_of<T>(args.d_out);
    const std::int64_t W = args.out.dim(1);
    const unsigned blocks = blocks_for(args.out.dim(0), 1);
    if (vectors_of_eight(W, out, teacher, d_out))
      distill_kernel<T, 8>
          <<<blocks, kThreads, 0, ctx.cuda().stream>>>(out, teacher, args.scale, d_out, data_of<float>(args.rows), W);
    else
      distill_kernel<T, 1>
          <<<blocks, kThreads, 0, ctx.cuda().stream>>>(out, teacher, args.scale, d_out, data_of<float>(args.rows), W);
  });
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::cuda_ops
