// The kernels behind ring_rows.h: a thread an element, or four neighbours where rows have no indices.
#include "attention/ring/ring_rows_cuda.h"
#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;

template <class T, int WIDTH>
__global__ void __launch_bounds__(kThreads)
    add_kernel(const T* __restrict__ from, float* __restrict__ to, std::int64_t count, bool add) {
  const std::int64_t i = (blockIdx.x * std::int64_t{kThreads} + threadIdx.x) * WIDTH;
  if (i >= count) return;
  float x[WIDTH], sum[WIDTH] = {};
  load(x, from + i);
  if (add) load(sum, to + i);
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) sum[j] += x[j];
  store(to + i, sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const T* __restrict__ from, const std::uint8_t* __restrict__ indices, float* __restrict__ to,
                  std::int64_t count, int n, int D, bool add) {
  const std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (i >= count) return;
  const float x = to_float(from[i / n * D + indices[i]]);
  to[i] = add ? to[i] + x : x;
}

struct Rows {
  std::int64_t b, t, h;
  int T, heads, D, n;
};

// A row's few indices are looked through by every element of the row.
template <class T, int WIDTH>
__global__ void __launch_bounds__(kThreads)
    store_kernel(const float* __restrict__ from, const std::uint8_t* __restrict__ indices, T* __restrict__ to,
                 const Rows s, std::int64_t count) {
  const std::int64_t i = (blockIdx.x * std::int64_t{kThreads} + threadIdx.x) * WIDTH;
  if (i >= count) return;
  const std::int64_t row = i / s.D, token = row / s.heads;
  const int d = static_cast<int>(i % s.D);
  float x[WIDTH] = {};
  if (indices == nullptr) {
    load(x, from + i);
  } else {
    for (int j = 0; j < s.n; ++j) {
      const int at = indices[row * s.n + j] - d;
#pragma unroll
      for (int w = 0; w < WIDTH; ++w)
        if (at == w) x[w] = from[row * s.n + j];
    }
  }
  store(to + token / s.T * s.b + token % s.T * s.t + row % s.heads * s.h + d, x);
}

}  // namespace

void ring_collect(Context& ctx, const RingCollect& a) {
  const std::int64_t count = a.to.numel();
  const auto stream = ctx.cuda().stream;
  for_float_type(a.from.dtype, "ring_collect", [&]<class T>() {
    const T* from = data_of<const T>(a.from);
    float* to = data_of<float>(a.to);
    if (!a.indices.empty())
      gather_kernel<<<blocks_for(count, kThreads), kThreads, 0, stream>>>(from, data_of<const std::uint8_t>(a.indices),
                                                                          to, count, static_cast<int>(a.to.dim(3)),
                                                                          static_cast<int>(a.from.dim(3)), a.add);
    else if (count % 4 == 0)
      add_kernel<T, 4><<<blocks_for(count / 4, kThreads), kThreads, 0, stream>>>(from, to, count, a.add);
    else
      add_kernel<T, 1><<<blocks_for(count, kThreads), kThreads, 0, stream>>>(from, to, count, a.add);
  });
  SFA_LAUNCH_CHECK();
}

void ring_store(Context& ctx, const RingStore& a) {
  const std::int64_t count = a.to.numel();
  const Rows s{.b = a.to.stride[0],
               .t = a.to.stride[1],
               .h = a.to.stride[2],
               .T = static_cast<int>(a.to.dim(1)),
               .heads = static_cast<int>(a.to.dim(2)),
               .D = static_cast<int>(a.to.dim(3)),
               .n = static_cast<int>(a.from.dim(3))};
  const auto* indices = a.indices.empty() ? nullptr : data_of<const std::uint8_t>(a.indices);
  for_float_type(a.to.dtype, "ring_store", [&]<class T>() {
    T* to = data_of<T>(a.to);
    const bool four = s.D % 4 == 0 && s.b % 4 == 0 && s.t % 4 == 0 && s.h % 4 == 0 &&
                      reinterpret_cast<std::uintptr_t>(to) % (4 * sizeof(T)) == 0;
    const auto launch = [&](auto kernel, int width) {
      kernel<<<blocks_for(count / width, kThreads), kThreads, 0, ctx.cuda().stream>>>(data_of<const float>(a.from),
                                                                                      indices, to, s, count);
    };
    if (four)
      launch(store_kernel<T, 4>, 4);
    else
      launch(store_kernel<T, 1>, 1);
  });
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::cuda_ops
