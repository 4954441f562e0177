// feature_gate. Block (32, 8): a lane owns V neighbouring columns and their factors, threadIdx.y strides over the rows
// of a chunk. The gradient of the factors is one partial sum a chunk, folded in a fixed order.
#include <algorithm>

#include "cuda/columns.h"
#include "cuda/launch.h"
#include "cuda/vector.cuh"
#include "ops/feature_gate/feature_gate_cuda.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kRowThreads = 8;

struct Chunks {
  std::int64_t rows, columns, stride;  // N, C, elements from row to row of the packed rows
  std::int64_t chunk_rows;
  unsigned count;
};

// Enough chunks to fill the card, fixed by the shape alone.
Chunks chunks_of(const Tensor& rows, const Tensor& weight) {
  const std::int64_t N = rows.dim(0), chunk_rows = ceil_div(N, std::clamp<std::int64_t>(ceil_div(N, 64), 1, 256));
  return {N, weight.dim(0), rows.dim(1), chunk_rows, blocks_for(N, std::max<std::int64_t>(chunk_rows, 1))};
}

template <class T, int V>
__global__ void __launch_bounds__(32 * kRowThreads)
    forward_kernel(T* rows, const T* __restrict__ weight, T* __restrict__ kept, const Chunks p) {
  const std::int64_t c = (blockIdx.x * std::int64_t{32} + threadIdx.x) * V, begin = blockIdx.y * p.chunk_rows,
                     end = min(p.rows, begin + p.chunk_rows);
  if (c >= p.columns) return;
  float factor[V];
  load(factor, weight + c);
#pragma unroll 4
  for (std::int64_t n = begin + threadIdx.y; n < end; n += kRowThreads) {
    float x[V];
    load(x, rows + n * p.stride + c);
    if (kept != nullptr) store(kept + n * p.columns + c, x);
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] *= factor[i];
    store(rows + n * p.stride + c, x);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(32 * kRowThreads)
    backward_kernel(T* d_rows, const T* __restrict__ weight, const T* __restrict__ kept, float* __restrict__ partials,
                    const Chunks p) {
  __shared__ float part[kRowThreads][32 * V];
  const std::int64_t c = (blockIdx.x * std::int64_t{32} + threadIdx.x) * V, begin = blockIdx.y * p.chunk_rows,
                     end = min(p.rows, begin + p.chunk_rows);
  float sum[V] = {};
  if (c < p.columns) {
    float factor[V];
    load(factor, weight + c);
#pragma unroll 4
    for (std::int64_t n = begin + threadIdx.y; n < end; n += kRowThreads) {
      float d[V], x[V];
      load(d, d_rows + n * p.stride + c);
      load(x, kept + n * p.columns + c);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        sum[i] += d[i] * x[i];
        d[i] *= factor[i];
      }
      store(d_rows + n * p.stride + c, d);
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) part[threadIdx.y][i * 32 + threadIdx.x] = sum[i];
  __syncthreads();
  if (threadIdx.y != 0 || c >= p.columns) return;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    float total = 0;
#pragma unroll
    for (int y = 0; y < kRowThreads; ++y) total += part[y][i * 32 + threadIdx.x];
    partials[blockIdx.y * p.columns + c + i] = total;
  }
}

// Calls launch(columns a lane, grid).
template <class T, class Launch>
void launch_wide(const Chunks& p, const T* rows, const T* weight, const T* kept, Launch&& launch) {
  const auto with = [&]<int V>() { launch.template operator()<V>(dim3(blocks_for(p.columns, 32 * V), p.count)); };
  if (p.stride % 8 == 0 && vectors_of_eight(p.columns, rows, weight, kept))
    with.template operator()<8>();
  else
    with.template operator()<1>();
  SFA_LAUNCH_CHECK();
}

}  // namespace

void feature_gate_forward(Context& ctx, const FeatureGate& args) {
  const Chunks p = chunks_of(args.rows, args.weight);
  for_float_type(args.rows.dtype, "feature_gate_forward", [&]<class T>() {
    T *rows = data_of<T>(args.rows), *kept = data_of<T>(args.kept);
    const T* weight = data_of<const T>(args.weight);
    launch_wide<T>(p, rows, weight, kept, [&]<int V>(const dim3& grid) {
      forward_kernel<T, V><<<grid, dim3(32, kRowThreads), 0, ctx.cuda().stream>>>(rows, weight, kept, p);
    });
  });
}

void feature_gate_backward(Context& ctx, const FeatureGateBackward& args) {
  const Chunks p = chunks_of(args.d_rows, args.weight);
  ArenaScope scope(args.scratch);
  float* partials = data_of<float>(args.scratch.take(DType::f32, {p.count, p.columns}));
  if (ctx.planning || p.rows == 0) return;
  CudaState& state = ctx.cuda();
  for_float_type(args.d_rows.dtype, "feature_gate_backward", [&]<class T>() {
    T* d_rows = data_of<T>(args.d_rows);
    const T *weight = data_of<const T>(args.weight), *kept = data_of<const T>(args.kept);
    launch_wide<T>(p, d_rows, weight, kept, [&]<int V>(const dim3& grid) {
      backward_kernel<T, V><<<grid, dim3(32, kRowThreads), 0, state.stream>>>(d_rows, weight, kept, partials, p);
    });
  });
  fold_partials(state, partials, static_cast<int>(p.count), p.columns, args.d_weight, p.columns);
}

}  // namespace sfa::cuda_ops
