#include "cuda/columns.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace sfa {
namespace {

constexpr int kFoldThreads = 32;

// One block of (32, kFoldThreads) threads a group of 32 columns. Few columns leave most of the card idle: many threads
// a column keep the waits short.
template <class G>
__global__ void __launch_bounds__(32 * kFoldThreads)
    fold_partials_kernel(const float* __restrict__ partials, int count, std::int64_t stride, G* to,
                         std::int64_t columns) {
  __shared__ float part[kFoldThreads][33];
  const std::int64_t c = blockIdx.x * std::int64_t{32} + threadIdx.x;
  float sum = 0;
  if (c < columns) {
#pragma unroll 8
    for (int p = static_cast<int>(threadIdx.y); p < count; p += kFoldThreads) sum += partials[p * stride + c];
  }
  part[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= columns) return;
#pragma unroll
  for (int y = 1; y < kFoldThreads; ++y) sum += part[y][threadIdx.x];
  to[c] = from_float<G>(to_float(to[c]) + sum);
}

// Partial column sums of d [N,O]. Block (32, 8): a lane owns V neighbouring columns, threadIdx.y strides over the rows
// of a chunk. The last chunks come first: whoever wrote d has just left them in the L2 cache.
template <class T, int V>
__global__ void column_sums_kernel(const T* __restrict__ d, float* __restrict__ partials, std::int64_t N,
                                   std::int64_t O, std::int64_t chunk_rows) {
  __shared__ float part[8][32 * V];
  const std::int64_t c = (blockIdx.x * std::int64_t{32} + threadIdx.x) * V, chunk = gridDim.y - 1 - blockIdx.y;
  const std::int64_t begin = chunk * chunk_rows, end = min(N, begin + chunk_rows);
  float sum[V] = {};
  if (c < O) {
#pragma unroll 4
    for (std::int64_t n = begin + threadIdx.y; n < end; n += 8) {
      float row[V];
      load(row, d + n * O + c);
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] += row[i];
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) part[threadIdx.y][i * 32 + threadIdx.x] = sum[i];
  __syncthreads();
  if (threadIdx.y != 0 || c >= O) return;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    float total = 0;
#pragma unroll
    for (int y = 0; y < 8; ++y) total += part[y][i * 32 + threadIdx.x];
    partials[chunk * O + c + i] = total;
  }
}

}  // namespace

void fold_partials(CudaState& state, const float* partials, int count, std::int64_t stride, const Tensor& to,
                   std::int64_t columns) {
  for_float_type(to.dtype, "a sum over rows", [&]<class G>() {
    fold_partials_kernel<G><<<blocks_for(columns, 32), dim3(32, kFoldThreads), 0, state.stream>>>(
        partials, count, stride, data_of<G>(to), columns);
  });
  SFA_LAUNCH_CHECK();
}

void add_column_sums(Context& ctx, const Tensor& d, const Tensor& to, Arena& scratch) {
  // Enough chunks to fill the card, fixed by the shape alone.
  const std::int64_t N = d.dim(0), O = d.dim(1), chunks = std::min<std::int64_t>(ceil_div(N, 64), 256),
                     chunk_rows = ceil_div(N, chunks);
  ArenaScope scope(scratch);
  float* partials = data_of<float>(scratch.take(DType::f32, {chunks, O}));
  if (ctx.planning) return;
  CudaState& state = ctx.cuda();
  for_float_type(d.dtype, "a sum over rows", [&]<class T>() {
    const T* from = data_of<const T>(d);
    const auto launch = [&](auto kernel, int columns) {
      const dim3 grid(blocks_for(O, 32 * columns), static_cast<unsigned>(chunks));
      kernel<<<grid, dim3(32, 8), 0, state.stream>>>(from, partials, N, O, chunk_rows);
    };
    if (vectors_of_eight(O, from))
      launch(column_sums_kernel<T, 8>, 8);
    else
      launch(column_sums_kernel<T, 1>, 1);
  });
  SFA_LAUNCH_CHECK();
  fold_partials(state, partials, static_cast<int>(chunks), O, to, O);
}

}  // namespace sfa
