// A block takes several rows at a time and a thread eight neighbouring columns, the same in every row: the sums over
// rows stay in its registers, all of a row's operands are on their way at once, and one barrier serves all rows of a
// turn, since RMS norm needs a single sum over a row. Blocks leave partial sums; their number is fixed by the shape.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/registers.cuh"
#include "cuda/vector.cuh"
#include "ops/residual_norm/residual_norm_bf16.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kWidth = 8;

struct Job {
  const bf16 *d_y, *d_residual_out, *r, *weight;  // d_residual_out may be null
  const float* rstd;
  bf16* d_residual;
  float* partials;  // [blocks][C]
  int N, C;
};

// ROWS at a time, up to THREADS * 8 columns, BLOCKS on a multiprocessor.
template <int ROWS, int THREADS, int BLOCKS>
__global__ void __launch_bounds__(THREADS, BLOCKS) backward_kernel(const Job p) {
  using Pack = Vector<bf16, kWidth>;
  __shared__ __align__(16) float parts[2][THREADS / 32][ROWS];  // sums of warps, in turns: one barrier is enough
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32,
            warps = static_cast<int>(blockDim.x) / 32, c = static_cast<int>(threadIdx.x) * kWidth;
  const bool own = c < p.C;
  const Pack weight = own ? *reinterpret_cast<const Pack*>(p.weight + c) : Pack{};
  float d_weight[kWidth] = {};
  int which = 0;
  for (int first = static_cast<int>(blockIdx.x) * ROWS; first < p.N;
       first += static_cast<int>(gridDim.x) * ROWS, which ^= 1) {
    Pack d_y[ROWS], r[ROWS], next[ROWS];
    float rstd[ROWS], dot[ROWS] = {};
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      const bool live = own && first + i < p.N;
      const std::int64_t at = std::int64_t{first + i} * p.C + c;
      d_y[i] = live ? *reinterpret_cast<const Pack*>(p.d_y + at) : Pack{};
      r[i] = live ? *reinterpret_cast<const Pack*>(p.r + at) : Pack{};
      next[i] = live && p.d_residual_out != nullptr ? *reinterpret_cast<const Pack*>(p.d_residual_out + at) : Pack{};
      rstd[i] = first + i < p.N ? p.rstd[first + i] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float along = to_float(d_y[i].v[j]) * (to_float(r[i].v[j]) * rstd[i]);
        d_weight[j] += along;
        dot[i] += along * to_float(weight.v[j]);
      }
      dot[i] = warp_sum(dot[i]);
      if (lane == 0) parts[which][warp][i] = dot[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ROWS; ++i) dot[i] = 0;
    for (int w = 0; w < warps; ++w) {
      float part[ROWS];
      load(part, parts[which][w]);
#pragma unroll
      for (int i = 0; i < ROWS; ++i) dot[i] += part[i];
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      if (!own || first + i >= p.N) continue;
      keep_packed(d_y[i]);
      keep_packed(r[i]);
      const float mean = dot[i] / static_cast<float>(p.C);
      float out[kWidth];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float normed = to_float(r[i].v[j]) * rstd[i];
        out[j] = to_float(next[i].v[j]) + (to_float(d_y[i].v[j]) * to_float(weight.v[j]) - normed * mean) * rstd[i];
      }
      store(p.d_residual + std::int64_t{first + i} * p.C + c, out);
    }
  }
  if (own) store(p.partials + std::int64_t{blockIdx.x} * p.C + c, d_weight);
}

}  // namespace

std::int64_t rms_norm_backward_bf16(CudaState& state, const ResidualNormBackward& args, float* partials) {
  const std::int64_t N = args.d_y.dim(0), C = args.d_y.dim(1);
  const Job job{.d_y = data_of<const bf16>(args.d_y),
                .d_residual_out = data_of<const bf16>(args.d_residual_out),
                .r = data_of<const bf16>(args.residual_out),
                .weight = data_of<const bf16>(args.weight),
                .rstd = data_of<const float>(args.rstd),
                .d_residual = data_of<bf16>(args.d_residual),
                .partials = partials,
                .N = static_cast<int>(N),
                .C = static_cast<int>(C)};
  if (args.d_y.dtype != DType::bf16 || !args.mean.empty() || C > 4096 || N >= (std::int64_t{1} << 30) ||
      !vectors_of_eight(C, job.d_y, job.d_residual_out, job.r, job.weight, job.d_residual))
    return 0;
  const auto threads = static_cast<unsigned>(ceil_div(C, 32 * kWidth) * 32);
  const auto launch = [&](auto kernel, int rows, std::int64_t blocks) {
    blocks = std::min(blocks, ceil_div(N, rows));
    kernel<<<static_cast<unsigned>(blocks), threads, 0, state.stream>>>(job);
    SFA_LAUNCH_CHECK();
    return blocks;
  };
  // As many blocks as 132 multiprocessors hold at once. Of two rows and more on their way in a thread, fewer that need
  // no local memory are faster.
  if (C <= 1024) return launch(backward_kernel<2, 128, 6>, 2, 792);
  if (C <= 2048) return launch(backward_kernel<2, 256, 3>, 2, 396);
  if (C <= 2560) return launch(backward_kernel<1, 320, 3>, 1, 396);
  return launch(backward_kernel<1, 512, 2>, 1, 264);
}

}  // namespace sfa::cuda_ops
