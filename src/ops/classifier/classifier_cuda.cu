// Chunks of rows: logits by one product (dtype of x), then a block a row takes maximum and sum in one pass and
// overwrites the logits with their gradient in a second, which finds most of the row in the L2 cache; then two
// products.
#include <cmath>

#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ops/classifier/classifier_cuda.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 512;

// Maximum and sum of exp(x - top) over the elements seen so far.
struct Softmax {
  float top = -INFINITY, total = 0;
};
struct Join {
  __device__ __forceinline__ Softmax operator()(Softmax a, Softmax b) const {
    const float top = fmaxf(a.top, b.top);
    if (top == -INFINITY) return a;
    return {top, a.total * expf(a.top - top) + b.total * expf(b.top - top)};
  }
};

__device__ __forceinline__ Softmax block_join(Softmax s) {
  constexpr int kWarps = kThreads / 32;
  __shared__ Softmax parts[kWarps];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    // Lower lane first on both sides, so that the two lanes of a pair get the same bits.
    const Softmax other{__shfl_xor_sync(kAllLanes, s.top, step), __shfl_xor_sync(kAllLanes, s.total, step)};
    s = (threadIdx.x & static_cast<unsigned>(step)) == 0 ? Join{}(s, other) : Join{}(other, s);
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = s;
  __syncthreads();
  s = parts[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) s = Join{}(s, parts[w]);
  return s;
}

template <class T>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (sizeof(T) == 2)
    return __expf(x);  // error below the rounding of a bf16 probability
  else
    return expf(x);
}

struct Rows {
  const std::int32_t* targets;
  float* losses;
  std::int64_t V, Vp;
  float loss_scale;
};

// One block a row of logits [rows, Vp].
template <class T, int WIDTH, bool kBackward>
__global__ void __launch_bounds__(kThreads) softmax_rows_kernel(T* __restrict__ logits, const Rows p) {
  const std::int64_t row = blockIdx.x;
  T* own = logits + row * p.Vp;
  const std::int32_t target = p.targets[row];
  if (target < 0) {
    if (threadIdx.x == 0) p.losses[row] = 0;
    if constexpr (kBackward) {
      const float zero[WIDTH] = {};
      for (std::int64_t v = threadIdx.x * WIDTH; v < p.Vp; v += kThreads * WIDTH) store(own + v, zero);
    }
    return;
  }
  Softmax s;
  for (std::int64_t v = threadIdx.x * WIDTH; v < p.V; v += kThreads * WIDTH) {
    float x[WIDTH], top = s.top;
    load(x, own + v);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      if (v + j >= p.V) x[j] = -INFINITY;
      top = fmaxf(top, x[j]);
    }
    if (top == -INFINITY) continue;
    float total = s.total * exponential<T>(s.top - top);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) total += exponential<T>(x[j] - top);
    s = {top, total};
  }
  const float chosen = to_float(own[target]);  // before the gradient overwrites it
  s = block_join(s);                           // its barrier stands between this read and the writes below
  const float lse = s.top + logf(s.total);
  if (threadIdx.x == 0) p.losses[row] = lse - chosen;
  if constexpr (kBackward) {
    const float factor = p.loss_scale / s.total;
    for (std::int64_t v = threadIdx.x * WIDTH; v < p.Vp; v += kThreads * WIDTH) {
      float x[WIDTH];
      load(x, own + v);
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) {
        x[j] = v + j < p.V ? exponential<T>(x[j] - s.top) * factor : 0.0f;
        if (v + j == target) x[j] -= p.loss_scale;
      }
      store(own + v, x);
    }
  }
}

template <class T>
void softmax_rows(CudaState& state, T* logits, const Rows& rows, std::int64_t count, bool backward) {
  const auto launch = [&](auto kernel) {
    kernel<<<static_cast<unsigned>(count), kThreads, 0, state.stream>>>(logits, rows);
  };
  if (vectors_of_eight(rows.Vp, logits))
    backward ? launch(softmax_rows_kernel<T, 8, true>) : launch(softmax_rows_kernel<T, 8, false>);
  else
    backward ? launch(softmax_rows_kernel<T, 1, true>) : launch(softmax_rows_kernel<T, 1, false>);
  SFA_LAUNCH_CHECK();
}

Matrix matrix(const Tensor& t) {
  return {t.data, t.dtype, t.stride[0]};
}

}  // namespace

void classifier_loss(Context& ctx, const Classifier& args) {
  const std::int64_t N = args.x.dim(0), C = args.x.dim(1), Vp = args.weight.dim(0);
  if (N == 0) return;
  const bool backward = !args.d_x.empty();
  const std::int64_t chunk = classifier_chunk_rows(N, Vp);
  ArenaScope scope(args.scratch);
  const Tensor all_logits = args.scratch.take(args.x.dtype, {chunk, Vp});
  if (ctx.planning) return;
  CudaState& state = ctx.cuda();
  for (std::int64_t n0 = 0; n0 < N; n0 += chunk) {
    const std::int64_t rows = std::min(chunk, N - n0);
    const Tensor logits = all_logits.slice(0, 0, rows), x = args.x.slice(0, n0, rows);
    gemm(state, {.transpose_b = true,
                 .M = rows,
                 .N = Vp,
                 .K = C,
                 .a = matrix(x),
                 .b = matrix(args.weight),
                 .d = matrix(logits)});
    for_float_type(logits.dtype, "classifier_loss", [&]<class T>() {
      const Rows part{.targets = data_of<const std::int32_t>(args.targets) + n0,
                      .losses = data_of<float>(args.losses) + n0,
                      .V = args.V,
                      .Vp = Vp,
                      .loss_scale = args.loss_scale};
      softmax_rows(state, data_of<T>(logits), part, rows, backward);
    });
    if (!backward) continue;
    gemm(state, {.M = rows,
                 .N = C,
                 .K = Vp,
                 .a = matrix(logits),
                 .b = matrix(args.weight),
                 .d = matrix(args.d_x.slice(0, n0, rows))});
    gemm(state, {.transpose_a = true,
                 .accumulate = true,
                 .M = Vp,
                 .N = C,
                 .K = rows,
                 .a = matrix(logits),
                 .b = matrix(x),
                 .d = matrix(args.d_weight)});
  }
}

}  // namespace sfa::cuda_ops
