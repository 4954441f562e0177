// Chunks of rows: logits by one product (dtype of x), then a block a row turns them into their gradient in place, then
// two products. The row is read once, into shared memory, when it fits there; two blocks a multiprocessor then read,
// compute and write at the same time. Wider rows are read twice, the second time mostly from the L2 cache.
#include <cuda_pipeline.h>

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

// Joins over aligned groups of WIDTH lanes. The lower lane's part comes first on both sides of a pair, so that both get
// the same bits.
template <int WIDTH>
__device__ __forceinline__ Softmax lanes_join(Softmax s) {
#pragma unroll
  for (int step = WIDTH / 2; step > 0; step /= 2) {
    const Softmax other{__shfl_xor_sync(kAllLanes, s.top, step), __shfl_xor_sync(kAllLanes, s.total, step)};
    s = (threadIdx.x & static_cast<unsigned>(step)) == 0 ? Join{}(s, other) : Join{}(other, s);
  }
  return s;
}

__device__ __forceinline__ Softmax block_join(Softmax s) {
  constexpr int kWarps = kThreads / 32;
  __shared__ Softmax parts[kWarps];
  s = lanes_join<32>(s);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = s;
  __syncthreads();
  return lanes_join<kWarps>(parts[threadIdx.x % kWarps]);
}

// exp(x - top). For bf16 through ex2.approx: its error is far below the rounding of a bf16 probability.
template <class T>
__device__ __forceinline__ float exponential(float x, float top) {
  if constexpr (sizeof(T) == 2) {
    constexpr float kLog2e = 1.4426950408889634f;
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(fmaf(x, kLog2e, -top * kLog2e)));
    return y;
  } else {
    return expf(x - top);
  }
}

struct Rows {
  const std::int32_t* targets;
  float* losses;
  std::int32_t* greedy;  // or null
  std::int64_t V, Vp;
  float loss_scale;
  const float* loss_weight;  // or null
};

// x[j] of a vector that starts at v, -inf in the padding.
template <int WIDTH>
__device__ __forceinline__ void hide_padding(float (&x)[WIDTH], std::int64_t v, std::int64_t V) {
  if (v + WIDTH <= V) return;
#pragma unroll
  for (int j = 0; j < WIDTH; ++j)
    if (v + j >= V) x[j] = -INFINITY;
}

template <class T, int WIDTH>
__device__ __forceinline__ void add_vector(Softmax& s, const T* from, std::int64_t v, std::int64_t V) {
  float x[WIDTH], top = s.top;
  load(x, from);
  hide_padding(x, v, V);
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) top = fmaxf(top, x[j]);
  if (top == -INFINITY) return;
  if (top > s.top) {
    s.total *= exponential<T>(s.top, top);
    s.top = top;
  }
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) s.total += exponential<T>(x[j], top);
}

template <class T, int WIDTH>
__device__ __forceinline__ void write_gradient(T* to, const T* from, const Softmax& s, std::int64_t v,
                                               std::int32_t target, float scale, const Rows& p) {
  const float factor = scale / s.total;
  float x[WIDTH];
  load(x, from);
  hide_padding(x, v, p.V);
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) x[j] = exponential<T>(x[j], s.top) * factor;
  if (v <= target && target < v + WIDTH) {
#pragma unroll
    for (int j = 0; j < WIDTH; ++j)
      if (v + j == target) x[j] -= scale;
  }
  store(to, x);
}

// One block a row of logits [rows, Vp]. A thread owns the vectors v = thread, thread + kThreads, ...; SHARED keeps them
// in shared memory.
template <class T, int WIDTH, bool BACKWARD, bool SHARED>
__global__ void __launch_bounds__(kThreads) softmax_rows_kernel(T* __restrict__ logits, const Rows p) {
  extern __shared__ __align__(16) unsigned char memory[];
  const std::int64_t row = blockIdx.x, first = threadIdx.x * WIDTH, step = kThreads * WIDTH;
  T* own = logits + row * p.Vp;
  T* kept = SHARED ? reinterpret_cast<T*>(memory) : own;
  const std::int32_t target = p.targets[row];
  if (target < 0) {
    if (threadIdx.x == 0) {
      p.losses[row] = 0;
      if (p.greedy != nullptr) p.greedy[row] = 0;
    }
    if constexpr (BACKWARD) {
      const float zero[WIDTH] = {};
      for (std::int64_t v = first; v < p.Vp; v += step) store(own + v, zero);
    }
    return;
  }
  if constexpr (SHARED) {
    constexpr std::size_t kBytes = WIDTH * sizeof(T), kPiece = kBytes < 16 ? kBytes : 16;
    for (std::int64_t v = first; v < p.Vp; v += step)
#pragma unroll
      for (std::size_t at = 0; at < kBytes; at += kPiece)
        __pipeline_memcpy_async(reinterpret_cast<unsigned char*>(kept + v) + at,
                                reinterpret_cast<const unsigned char*>(own + v) + at, kPiece);
    __pipeline_commit();
    __pipeline_wait_prior(0);  // a thread reads only what it copied itself
  }
  const float chosen =
      threadIdx.x == 0 ? to_float(own[target]) : 0.0f;  // before the gradient overwrites it: the join is a barrier
  Softmax s;
#pragma unroll 2
  for (std::int64_t v = first; v < p.V; v += step) add_vector<T, WIDTH>(s, kept + v, v, p.V);
  s = block_join(s);
  if (threadIdx.x == 0) p.losses[row] = s.top + logf(s.total) - chosen;
  if constexpr (!BACKWARD) {
    if (p.greedy != nullptr) {
      // The largest logit may stand in several places, the more so in bf16: the first of them is the greedy choice.
      const bool largest = to_float(own[target]) == s.top;
      bool earlier = false;
      for (std::int64_t v = threadIdx.x; largest && v < target; v += kThreads) earlier |= to_float(own[v]) == s.top;
      earlier = __syncthreads_or(earlier ? 1 : 0) != 0;
      if (threadIdx.x == 0) p.greedy[row] = largest && !earlier ? 1 : 0;
    }
  }
  if constexpr (BACKWARD) {
    const float scale = p.loss_weight != nullptr ? p.loss_scale * *p.loss_weight : p.loss_scale;
#pragma unroll 2
    for (std::int64_t v = first; v < p.Vp; v += step)
      write_gradient<T, WIDTH>(own + v, kept + v, s, v, target, scale, p);
  }
}

template <class T>
void softmax_rows(CudaState& state, T* logits, const Rows& rows, std::int64_t count, bool backward) {
  const std::size_t bytes = static_cast<std::size_t>(rows.Vp) * sizeof(T);
  const auto launch = [&](auto kernel, std::size_t shared) {
    if (shared > 0)
      SFA_CUDA_CHECK(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    kernel<<<static_cast<unsigned>(count), kThreads, shared, state.stream>>>(logits, rows);
  };
  constexpr std::size_t kOwnShared = 1024;  // more than the kernel's static arrays
  if (!vectors_of_eight(rows.Vp, logits))
    backward ? launch(softmax_rows_kernel<T, 1, true, false>, 0) : launch(softmax_rows_kernel<T, 1, false, false>, 0);
  else if (!backward)
    launch(softmax_rows_kernel<T, 8, false, false>, 0);
  else if (bytes + kOwnShared <= state.shared_memory)
    launch(softmax_rows_kernel<T, 8, true, true>, bytes);
  else
    launch(softmax_rows_kernel<T, 8, true, false>, 0);
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
  const std::int64_t chunk = classifier_chunk_rows(N, Vp, Device::cuda);
  ArenaScope scope(args.scratch);
  const Tensor all_logits = args.scratch.take(args.x.dtype, {chunk, Vp});
  if (ctx.planning) return;
  CudaState& state = ctx.cuda();
  for (std::int64_t n0 = 0; n0 < N; n0 += chunk) {
    const std::int64_t rows = std::min(chunk, N - n0);
    const Tensor logits = all_logits.slice(0, 0, rows), x = args.x.slice(0, n0, rows);
    {
      const OpScope op(ctx, [&] { return classifier_work(args, logits).logits; });
      gemm(state, {.transpose_b = true,
                   .M = rows,
                   .N = Vp,
                   .K = C,
                   .a = matrix(x),
                   .b = matrix(args.weight),
                   .d = matrix(logits)});
    }
    for_float_type(logits.dtype, "classifier_loss", [&]<class T>() {
      const OpScope op(ctx, [&] { return classifier_work(args, logits).softmax; });
      const Rows part{.targets = data_of<const std::int32_t>(args.targets) + n0,
                      .losses = data_of<float>(args.losses) + n0,
                      .greedy = args.greedy.empty() ? nullptr : data_of<std::int32_t>(args.greedy) + n0,
                      .V = args.V,
                      .Vp = Vp,
                      .loss_scale = args.loss_scale,
                      .loss_weight = args.loss_weight.empty() ? nullptr : data_of<const float>(args.loss_weight)};
      softmax_rows(state, data_of<T>(logits), part, rows, backward);
    });
    if (!backward) continue;
    {
      const OpScope op(ctx, [&] { return classifier_work(args, logits).d_x; });
      gemm(state, {.M = rows,
                   .N = C,
                   .K = Vp,
                   .a = matrix(logits),
                   .b = matrix(args.weight),
                   .d = matrix(args.d_x.slice(0, n0, rows))});
    }
    const OpScope op(ctx, [&] { return classifier_work(args, logits).d_weight; });
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
