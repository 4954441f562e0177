// Eight rows at a time in shared memory, two sets of them, so that the next rows are on their way while these are
// worked on. A warp takes the two sums of its row and writes d_residual; then threads own columns and add the eight
// rows to d_weight and d_bias. That keeps both kinds of sums in few registers, where one thread's share of a row and of
// the columns together (residual_norm_cuda.cu) does not fit two blocks.
#include <cuda_pipeline.h>

#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ops/residual_norm/residual_norm_bf16.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = kThreads / 32;
constexpr int kMaxColumns = 1024;
constexpr int kPairs = kMaxColumns / 2 / kThreads;  // pairs of columns that a thread owns: thread, thread + kThreads

struct Job {
  const bf16 *d_y, *d_residual_out, *r, *weight;  // d_residual_out may be null
  const float *mean, *rstd;
  bf16* d_residual;
  float* partials;
  bool x_bias;  // the columns of d_residual are summed too
  int N, C;
};

// One set of rows in shared memory; a warp fills and reads its own row of each.
struct Set {
  bf16 *d_y, *r, *next;  // [kRows, C]; next: d_residual_out, then d_residual
};
__device__ __forceinline__ Set set_at(unsigned char* memory, int which, int C) {
  auto* base = reinterpret_cast<bf16*>(memory) + which * 3 * kRows * C;
  return {base, base + kRows * C, base + 2 * kRows * C};
}

__device__ __forceinline__ void fetch(const Job& p, const Set& to, int row, int warp, int lane) {
  if (row < p.N) {
    const std::int64_t from = std::int64_t{row} * p.C;
    for (int c = lane * 8; c < p.C; c += 256) {
      __pipeline_memcpy_async(to.d_y + warp * p.C + c, p.d_y + from + c, 16);
      __pipeline_memcpy_async(to.r + warp * p.C + c, p.r + from + c, 16);
      if (p.d_residual_out != nullptr)
        __pipeline_memcpy_async(to.next + warp * p.C + c, p.d_residual_out + from + c, 16);
    }
  }
  __pipeline_commit();
}

template <int VECTORS>
__device__ __forceinline__ void row_gradient(const Job& p, const Set& s, int row, int warp, int lane) {
  const float mean = p.mean[row], rstd = p.rstd[row];
  const bf16 *d_y = s.d_y + warp * p.C, *r = s.r + warp * p.C;
  bf16* next = s.next + warp * p.C;
  float g[VECTORS][8], normed[VECTORS][8], sum = 0, dot = 0;
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int c = (i * 32 + lane) * 8;
    if (c >= p.C) continue;
    float weight[8];
    load(g[i], d_y + c);
    load(normed[i], r + c);
    load(weight, p.weight + c);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      normed[i][j] = (normed[i][j] - mean) * rstd;
      g[i][j] *= weight[j];
      sum += g[i][j];
      dot += g[i][j] * normed[i][j];
    }
  }
  sum = warp_sum(sum) / static_cast<float>(p.C);
  dot = warp_sum(dot) / static_cast<float>(p.C);
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int c = (i * 32 + lane) * 8;
    if (c >= p.C) continue;
    float out[8] = {};
    if (p.d_residual_out != nullptr) load(out, next + c);
#pragma unroll
    for (int j = 0; j < 8; ++j) out[j] += (g[i][j] - sum - normed[i][j] * dot) * rstd;
    store(p.d_residual + std::int64_t{row} * p.C + c, out);
    if (p.x_bias) store(next + c, out);
  }
}

struct ColumnSums {
  float weight[kPairs][2] = {}, bias[kPairs][2] = {}, x_bias[kPairs][2] = {};
};

// Adds `count` rows of a set to the sums of this thread's columns. stats: mean and rstd of each row.
__device__ __forceinline__ void add_columns(ColumnSums& sums, const Job& p, const Set& s, const float2* stats,
                                            int count) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int c = 2 * (static_cast<int>(threadIdx.x) + i * kThreads);
    if (c >= p.C) continue;
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
      if (n >= count) break;
      float g[2], r[2], d_residual[2] = {};
      load(g, s.d_y + n * p.C + c);
      load(r, s.r + n * p.C + c);
      if (p.x_bias) load(d_residual, s.next + n * p.C + c);
      const float2 stat = stats[n];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        sums.weight[i][j] += g[j] * (r[j] - stat.x) * stat.y;
        sums.bias[i][j] += g[j];
        sums.x_bias[i][j] += d_residual[j];
      }
    }
  }
}

template <int VECTORS>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const Job p) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ float2 stats[kRows];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int step = static_cast<int>(gridDim.x) * kRows;
  ColumnSums sums;
  int which = 0, first = static_cast<int>(blockIdx.x) * kRows;
  fetch(p, set_at(memory, which, p.C), first + warp, warp, lane);
  for (; first < p.N; first += step, which ^= 1) {
    fetch(p, set_at(memory, which ^ 1, p.C), first + step + warp, warp, lane);
    __pipeline_wait_prior(1);
    __syncwarp();  // the row was copied by the whole warp
    const Set s = set_at(memory, which, p.C);
    const int row = first + warp;
    if (row < p.N) {
      if (lane == 0) stats[warp] = make_float2(p.mean[row], p.rstd[row]);
      row_gradient<VECTORS>(p, s, row, warp, lane);
    }
    __syncthreads();
    add_columns(sums, p, s, stats, min(kRows, p.N - first));
    __syncthreads();  // the set may be filled anew
  }
  float* out = p.partials + std::int64_t{blockIdx.x} * 3 * p.C;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int c = 2 * (static_cast<int>(threadIdx.x) + i * kThreads);
    if (c >= p.C) continue;
    store(out + c, sums.weight[i]);
    store(out + p.C + c, sums.bias[i]);
    if (p.x_bias) store(out + 2 * p.C + c, sums.x_bias[i]);
  }
}

}  // namespace

bool residual_norm_backward_bf16(CudaState& state, const ResidualNormBackward& args, float* partials,
                                 std::int64_t blocks) {
  const std::int64_t N = args.d_y.dim(0), C = args.d_y.dim(1);
  const Job job{.d_y = data_of<const bf16>(args.d_y),
                .d_residual_out = data_of<const bf16>(args.d_residual_out),
                .r = data_of<const bf16>(args.residual_out),
                .weight = data_of<const bf16>(args.weight),
                .mean = data_of<const float>(args.mean),
                .rstd = data_of<const float>(args.rstd),
                .d_residual = data_of<bf16>(args.d_residual),
                .partials = partials,
                .x_bias = !args.d_x_bias.empty(),
                .N = static_cast<int>(N),
                .C = static_cast<int>(C)};
  const std::size_t shared = static_cast<std::size_t>(2 * 3 * kRows * C) * sizeof(bf16);
  if (args.d_y.dtype != DType::bf16 || args.mean.empty() || C > kMaxColumns || N + blocks * kRows * 2 > 0x7fffffff ||
      shared + 1024 > state.shared_memory ||
      !vectors_of_eight(C, job.d_y, job.d_residual_out, job.r, job.weight, job.d_residual))
    return false;
  const auto launch = [&](auto kernel) {
    SFA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    kernel<<<static_cast<unsigned>(blocks), kThreads, shared, state.stream>>>(job);
  };
  if (C <= 256)
    launch(backward_kernel<1>);
  else if (C <= 512)
    launch(backward_kernel<2>);
  else if (C <= 768)
    launch(backward_kernel<3>);
  else
    launch(backward_kernel<4>);
  SFA_LAUNCH_CHECK();
  return true;
}

}  // namespace sfa::cuda_ops
