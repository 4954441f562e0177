// A row lives in the registers of a group of threads: one warp up to 1024 features, one block beyond. Both passes over
// it (mean, then squared deviations) cost no memory traffic. In the backward every group keeps its share of d_weight
// and d_bias in registers over the rows that it walks; blocks leave partial sums that a second kernel folds in order.
// The number of blocks is fixed, not the card's, so that the bits do not depend on the card.
#include "cuda/columns.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/registers.cuh"
#include "cuda/vector.cuh"
#include "ops/residual_norm/residual_norm_bf16.cuh"
#include "ops/residual_norm/residual_norm_cuda.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kBackwardBlocks = 264;  // two for each of 132 multiprocessors

template <class T>
struct ForwardPointers {
  const T *residual, *x, *weight, *bias;
  T *residual_out, *y;
  float *mean, *rstd;
  float eps;
  std::int64_t N, C;
};

// GROUP threads a row, each with up to VECTORS vectors of WIDTH features: vector i of a thread starts at (i * GROUP +
// thread) * WIDTH.
// RMS: no mean is taken away and no bias added.
template <class T, bool RMS, int WIDTH, int GROUP, int VECTORS>
__global__ void __launch_bounds__(kThreads) forward_kernel(const ForwardPointers<T> p) {
  constexpr int kRows = kThreads / GROUP;
  const int thread = static_cast<int>(threadIdx.x) % GROUP;
  const std::int64_t row = blockIdx.x * std::int64_t{kRows} + threadIdx.x / GROUP;
  if (row >= p.N) return;  // whole warps, or no thread when the group is the block
  const T* from = p.residual + row * p.C;
  float r[VECTORS][WIDTH];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const std::int64_t c = (i * GROUP + thread) * WIDTH;
    if (c >= p.C) continue;
    load(r[i], from + c);
    if (p.x != nullptr) {
      float add[WIDTH];
      load(add, p.x + row * p.C + c);
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) r[i][j] = rounded<T>(r[i][j] + add[j]);
      store(p.residual_out + row * p.C + c, r[i]);
    }
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) sum += r[i][j];
  }
  const float mean = RMS ? 0.0f : group_sum<GROUP>(sum) / static_cast<float>(p.C);
  float squares = 0;
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    if ((i * GROUP + thread) * WIDTH >= p.C) continue;
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) squares += (r[i][j] - mean) * (r[i][j] - mean);
  }
  const float rstd = 1.0f / sqrtf(group_sum<GROUP>(squares) / static_cast<float>(p.C) + p.eps);
  if (thread == 0) {
    if constexpr (!RMS) p.mean[row] = mean;
    p.rstd[row] = rstd;
  }
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const std::int64_t c = (i * GROUP + thread) * WIDTH;
    if (c >= p.C) continue;
    float weight[WIDTH], bias[WIDTH] = {};
    load(weight, p.weight + c);
    if constexpr (!RMS) load(bias, p.bias + c);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) r[i][j] = (r[i][j] - mean) * rstd * weight[j] + bias[j];
    store(p.y + row * p.C + c, r[i]);
  }
}

template <class T>
struct BackwardPointers {
  const T *d_y, *d_residual_out, *r, *weight;
  const float *mean, *rstd;
  T* d_residual;
  float* partials;  // [blocks][3][C]: d_weight, d_bias, and one that is not used here
  std::int64_t N, C;
};

// One row: d_residual, and the row's share of d_weight and d_bias into the thread's sums. Threads of a block call it
// together. Rows stay packed and the last operand is asked for before the reductions, so that two blocks fit on a
// multiprocessor and hide each other's waits.
template <class T, bool RMS, int WIDTH, int GROUP, int VECTORS>
__device__ __forceinline__ void backward_row(const BackwardPointers<T>& p, std::int64_t row, int thread,
                                             float (&d_weight)[VECTORS][WIDTH], float (&d_bias)[VECTORS][WIDTH]) {
  using Pack = Vector<T, WIDTH>;
  const bool live = row < p.N;
  Pack d_y[VECTORS], r[VECTORS], next[VECTORS];
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const std::int64_t c = (i * GROUP + thread) * WIDTH;
    const bool inside = live && c < p.C;
    d_y[i] = inside ? *reinterpret_cast<const Pack*>(p.d_y + row * p.C + c) : Pack{};
    r[i] = inside ? *reinterpret_cast<const Pack*>(p.r + row * p.C + c) : Pack{};
  }
  const float mean = live && !RMS ? p.mean[row] : 0.0f, rstd = live ? p.rstd[row] : 0.0f;
  float sum = 0, dot = 0;
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const std::int64_t c = (i * GROUP + thread) * WIDTH;
    if (c >= p.C) continue;
    float weight[WIDTH];
    load(weight, p.weight + c);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      const float g = to_float(d_y[i].v[j]), normed = (to_float(r[i].v[j]) - mean) * rstd;
      d_weight[i][j] += g * normed;
      if constexpr (!RMS) {
        d_bias[i][j] += g;
        sum += g * weight[j];
      }
      dot += g * weight[j] * normed;
    }
  }
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const std::int64_t c = (i * GROUP + thread) * WIDTH;
    const bool wanted = live && c < p.C && p.d_residual_out != nullptr;
    next[i] = wanted ? *reinterpret_cast<const Pack*>(p.d_residual_out + row * p.C + c) : Pack{};
  }
  if constexpr (!RMS) sum = group_sum<GROUP>(sum) / static_cast<float>(p.C);
  dot = group_sum<GROUP>(dot) / static_cast<float>(p.C);
  const T* weights = p.weight;
  asm volatile("" : "+l"(weights));  // read again, from the L1 cache
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const std::int64_t c = (i * GROUP + thread) * WIDTH;
    if (!live || c >= p.C) continue;
    keep_packed(d_y[i]);
    keep_packed(r[i]);
    float weight[WIDTH], out[WIDTH];
    load(weight, weights + c);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      const float normed = (to_float(r[i].v[j]) - mean) * rstd;
      out[j] = to_float(next[i].v[j]) + (to_float(d_y[i].v[j]) * weight[j] - sum - normed * dot) * rstd;
    }
    store(p.d_residual + row * p.C + c, out);
  }
}

template <class T, bool RMS, int WIDTH, int GROUP, int VECTORS>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const BackwardPointers<T> p) {
  constexpr int kRows = kThreads / GROUP;
  extern __shared__ float shared[];  // [2][C], when a block has several groups
  const int thread = static_cast<int>(threadIdx.x) % GROUP, group = static_cast<int>(threadIdx.x) / GROUP;
  float d_weight[VECTORS][WIDTH] = {}, d_bias[VECTORS][WIDTH] = {};
  for (std::int64_t first = blockIdx.x * std::int64_t{kRows}; first < p.N; first += gridDim.x * std::int64_t{kRows})
    backward_row<T, RMS, WIDTH, GROUP, VECTORS>(p, first + group, thread, d_weight, d_bias);

  float* out = p.partials + blockIdx.x * 3 * p.C;
  float* to = kRows == 1 ? out : shared;
  for (int turn = 0; turn < kRows; ++turn) {
    if (group == turn) {
#pragma unroll
      for (int i = 0; i < VECTORS; ++i) {
        const std::int64_t c = (i * GROUP + thread) * WIDTH;
        if (c >= p.C) continue;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
          to[c + j] = turn == 0 ? d_weight[i][j] : to[c + j] + d_weight[i][j];
          if constexpr (!RMS) to[p.C + c + j] = turn == 0 ? d_bias[i][j] : to[p.C + c + j] + d_bias[i][j];
        }
      }
    }
    __syncthreads();
  }
  if constexpr (kRows > 1)
    for (std::int64_t c = threadIdx.x; c < (RMS ? 1 : 2) * p.C; c += kThreads) out[c] = shared[c];
}

template <int WIDTH_, int GROUP_, int VECTORS_>
struct Shape {
  static constexpr int WIDTH = WIDTH_, GROUP = GROUP_, VECTORS = VECTORS_;
};

// Calls f with the smallest shape that holds a row of C features.
template <class F>
void for_shape(std::int64_t C, bool vectors, F&& f) {
  if (!vectors) {
    require(C <= 4096, "a hidden size of {} is not supported on a GPU: above 4096 it must be a multiple of 8", C);
    return f(Shape<1, 256, 16>{});
  }
  if (C <= 256) return f(Shape<8, 32, 1>{});
  if (C <= 512) return f(Shape<8, 32, 2>{});
  if (C <= 768) return f(Shape<8, 32, 3>{});
  if (C <= 1024) return f(Shape<8, 32, 4>{});
  if (C <= 2048) return f(Shape<8, 256, 1>{});
  if (C <= 4096) return f(Shape<8, 256, 2>{});
  require(C <= 8192, "a hidden size of {} is not supported on a GPU; the largest is 8192", C);
  f(Shape<8, 256, 4>{});
}

std::int64_t backward_blocks(std::int64_t N, int rows_per_block) {
  return std::min(kBackwardBlocks, ceil_div(N, rows_per_block));
}

// Queues d_residual and the partial sums; returns the number of blocks that leave some.
std::int64_t backward_any(CudaState& state, const ResidualNormBackward& args, float* partials) {
  const std::int64_t N = args.d_y.dim(0), C = args.d_y.dim(1);
  std::int64_t blocks = 0;
  for_float_type(args.d_y.dtype, "residual_norm_backward", [&]<class T>() {
    const BackwardPointers<T> p{.d_y = data_of<const T>(args.d_y),
                                .d_residual_out = data_of<const T>(args.d_residual_out),
                                .r = data_of<const T>(args.residual_out),
                                .weight = data_of<const T>(args.weight),
                                .mean = data_of<const float>(args.mean),
                                .rstd = data_of<const float>(args.rstd),
                                .d_residual = data_of<T>(args.d_residual),
                                .partials = partials,
                                .N = N,
                                .C = C};
    const bool vectors = vectors_of_eight(C, p.d_y, p.d_residual_out, p.r, p.weight, p.d_residual);
    for_shape(C, vectors, [&]<class S>(S) {
      constexpr int kRows = kThreads / S::GROUP;
      blocks = backward_blocks(N, kRows);
      const std::size_t shared = kRows > 1 ? static_cast<std::size_t>(2 * C) * sizeof(float) : 0;
      const auto launch = [&](auto kernel) {
        kernel<<<static_cast<unsigned>(blocks), kThreads, shared, state.stream>>>(p);
      };
      if (args.mean.empty())
        launch(backward_kernel<T, true, S::WIDTH, S::GROUP, S::VECTORS>);
      else
        launch(backward_kernel<T, false, S::WIDTH, S::GROUP, S::VECTORS>);
    });
  });
  SFA_LAUNCH_CHECK();
  return blocks;
}

// True when d_x_bias, where wanted, is done as well.
bool backward_but_x_bias(Context& ctx, const ResidualNormBackward& args) {
  const std::int64_t N = args.d_y.dim(0), C = args.d_y.dim(1);
  ArenaScope scope(args.scratch);
  float* partials = data_of<float>(args.scratch.take(DType::f32, {kBackwardBlocks, 3, C}));
  if (ctx.planning) return false;
  CudaState& state = ctx.cuda();
  if (const std::int64_t left = rms_norm_backward_bf16(state, args, partials); left > 0) {
    fold_partials(state, partials, static_cast<int>(left), C, args.d_weight, C);
    return false;
  }
  std::int64_t blocks = backward_blocks(N, 8);
  const bool all_sums = residual_norm_backward_bf16(state, args, partials, blocks);
  if (!all_sums) blocks = backward_any(state, args, partials);
  const auto fold = [&](std::int64_t which, const Tensor& to) {
    fold_partials(state, partials + which * C, static_cast<int>(blocks), 3 * C, to, C);
  };
  fold(0, args.d_weight);
  if (!args.d_bias.empty()) fold(1, args.d_bias);
  if (all_sums && !args.d_x_bias.empty()) fold(2, args.d_x_bias);
  return all_sums;
}

}  // namespace

void residual_norm_forward(Context& ctx, const ResidualNormForward& args) {
  CudaState& state = ctx.cuda();
  const std::int64_t N = args.residual.dim(0), C = args.residual.dim(1);
  if (N == 0) return;
  for_float_type(args.y.dtype, "residual_norm_forward", [&]<class T>() {
    const ForwardPointers<T> p{.residual = data_of<const T>(args.residual),
                               .x = data_of<const T>(args.x),
                               .weight = data_of<const T>(args.weight),
                               .bias = data_of<const T>(args.bias),
                               .residual_out = data_of<T>(args.residual_out),
                               .y = data_of<T>(args.y),
                               .mean = data_of<float>(args.mean),
                               .rstd = data_of<float>(args.rstd),
                               .eps = args.eps,
                               .N = N,
                               .C = C};
    const bool vectors = vectors_of_eight(C, p.residual, p.x, p.weight, p.bias, p.residual_out, p.y);
    for_shape(C, vectors, [&]<class S>(S) {
      const auto launch = [&](auto kernel) {
        kernel<<<blocks_for(N, kThreads / S::GROUP), kThreads, 0, state.stream>>>(p);
      };
      if (args.mean.empty())
        launch(forward_kernel<T, true, S::WIDTH, S::GROUP, S::VECTORS>);
      else
        launch(forward_kernel<T, false, S::WIDTH, S::GROUP, S::VECTORS>);
    });
  });
  SFA_LAUNCH_CHECK();
}

void residual_norm_backward(Context& ctx, const ResidualNormBackward& args) {
  if (args.d_y.dim(0) == 0) return;
  const bool summed = backward_but_x_bias(ctx, args);
  if (!args.d_x_bias.empty() && (!summed || ctx.planning))
    add_column_sums(ctx, args.d_residual, args.d_x_bias, args.scratch);
}

}  // namespace sfa::cuda_ops
