// balance_backward in two passes: how many rows keep each feature, in integers, whose order does not matter; then rows,
// a group of lanes each, and one partial sum a block, which sum_add adds in order.
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ops/balance/balance_cuda.h"
#include "ops/reduce/reduce.h"
#include "ops/select/select_rows.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256, kMostFeatures = 256;
constexpr std::int64_t kChunk = 512;  // rows of a head that a block counts

// counts [heads, D] += rows that keep the feature. Grid: chunks of tokens, heads.
__global__ void __launch_bounds__(kThreads)
    count_kernel(const RowView<const std::uint8_t> kept, std::uint32_t tokens, int k, int D, int* counts) {
  __shared__ int count[kMostFeatures];
  count[threadIdx.x] = 0;
  __syncthreads();
  const std::uint32_t first = blockIdx.x * static_cast<std::uint32_t>(kChunk), h = blockIdx.y,
                      here = min(static_cast<std::uint32_t>(kChunk), tokens - first) * static_cast<std::uint32_t>(k);
  for (std::uint32_t i = threadIdx.x; i < here; i += kThreads) {
    const std::uint32_t token = i / k;
    atomicAdd(&count[kept.row((first + token) * kept.heads + h)[i - token * k]], 1);
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < D && count[threadIdx.x] > 0)
    atomicAdd(&counts[h * D + threadIdx.x], count[threadIdx.x]);
}

template <class T>
struct Rows {
  RowView<const T> x;
  RowView<T> d_x;
  const int* counts;
  float* parts;  // one a block
  std::uint32_t rows;
  int D;
  float share;  // of one count: 1 / (R k)
  float scale;
};

// GROUP lanes a row, each with PARTS pieces of V neighbouring features.
template <class T, int V, int GROUP, int PARTS>
__global__ void __launch_bounds__(kThreads) balance_kernel(const Rows<T> p) {
  const std::uint32_t n = (blockIdx.x * kThreads + threadIdx.x) / GROUP;
  const int lane = static_cast<int>(threadIdx.x) % GROUP;
  const bool inside = n < p.rows;
  const T* x = inside ? p.x.row(n) : nullptr;
  const int* counts = p.counts + (inside ? n % p.x.heads : 0) * p.D;
  float value[PARTS][V] = {}, share[PARTS][V] = {};
  float sum = 0, kept = 0;
#pragma unroll
  for (int i = 0; i < PARTS; ++i) {
    const int j = (i * GROUP + lane) * V;
    if (!inside || j >= p.D) continue;
    load(value[i], x + j);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      share[i][v] = static_cast<float>(counts[j + v]) * p.share;
      sum += fabsf(value[i][v]);
      kept += share[i][v] * fabsf(value[i][v]);
    }
  }
  sum = warp_sum<GROUP>(sum);
  kept = warp_sum<GROUP>(kept);
  const bool any = inside && sum != 0;
  const float weight = any ? static_cast<float>(p.D) / sum : 0, mean = any ? kept / sum : 0;
#pragma unroll
  for (int i = 0; i < PARTS; ++i) {
    const int j = (i * GROUP + lane) * V;
    if (!any || j >= p.D) continue;
    T* to = p.d_x.row(n) + j;
    float d[V];
    load(d, to);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float sign = static_cast<float>((value[i][v] > 0) - (value[i][v] < 0));
      d[v] += p.scale * weight * sign * (share[i][v] - mean);
    }
    store(to, d);
  }
  const float part = block_sum<kThreads>(lane == 0 ? weight * kept : 0);
  if (threadIdx.x == 0) p.parts[blockIdx.x] = part;
}

// Lanes of a row, eight features each where rows can be read so, otherwise one at a time.
struct Group {
  int lanes;
  bool vectors;
};
Group group_of(const BalanceBackward& a) {
  if (!aligned_rows(a.x, 8) || !aligned_rows(a.d_x, 8)) return {32, false};
  const std::int64_t D = a.x.dim(3);
  return {D <= 64 ? 8 : D <= 128 ? 16 : 32, true};
}

template <class T>
void launch(CudaState& state, const Rows<T>& rows, const Group& group, unsigned blocks) {
  if (!group.vectors)
    balance_kernel<T, 1, 32, kMostFeatures / 32><<<blocks, kThreads, 0, state.stream>>>(rows);
  else if (group.lanes == 8)
    balance_kernel<T, 8, 8, 1><<<blocks, kThreads, 0, state.stream>>>(rows);
  else if (group.lanes == 16)
    balance_kernel<T, 8, 16, 1><<<blocks, kThreads, 0, state.stream>>>(rows);
  else
    balance_kernel<T, 8, 32, 1><<<blocks, kThreads, 0, state.stream>>>(rows);
}

}  // namespace

void balance_backward(Context& ctx, const BalanceBackward& args) {
  const std::int64_t tokens = args.x.dim(0) * args.x.dim(1), heads = args.x.dim(2), D = args.x.dim(3),
                     k = args.indices.dim(3), rows = tokens * heads;
  const Group group = group_of(args);
  const unsigned blocks = blocks_for(rows, kThreads / group.lanes);
  ArenaScope scope(args.scratch);
  const Tensor counts = args.scratch.take(DType::i32, {heads, D}), parts = args.scratch.take(DType::f32, {blocks});
  if (ctx.planning || rows == 0) return;
  CudaState& state = ctx.cuda();
  ctx.zero(counts);
  count_kernel<<<dim3(blocks_for(tokens, kChunk), static_cast<unsigned>(heads)), kThreads, 0, state.stream>>>(
      row_view<const std::uint8_t>(args.indices), static_cast<std::uint32_t>(tokens), static_cast<int>(k),
      static_cast<int>(D), data_of<int>(counts));
  SFA_LAUNCH_CHECK();
  for_float_type(args.x.dtype, "balance_backward", [&]<class T>() {
    const Rows<T> job{.x = row_view<const T>(args.x),
                      .d_x = row_view<T>(args.d_x),
                      .counts = data_of<const int>(counts),
                      .parts = data_of<float>(parts),
                      .rows = static_cast<std::uint32_t>(rows),
                      .D = static_cast<int>(D),
                      .share = 1.0f / static_cast<float>(tokens * k),
                      .scale = args.scale};
    launch(state, job, group, blocks);
  });
  SFA_LAUNCH_CHECK();
  if (!args.total.empty()) sum_add(ctx, parts, args.total);
}

}  // namespace sfa::cuda_ops
