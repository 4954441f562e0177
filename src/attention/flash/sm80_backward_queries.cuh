// dQ of the sm_80 backward. A block of threads owns kRows query rows of one (batch, head), a warp kAtoms x 16 of them,
// and walks over the blocks of keys that they see.
#pragma once

#include "attention/flash/sm80_backward.cuh"

namespace sfa::flash {

template <int kDqk_, int kDv_, int kWarps_, int kAtoms_, int kKeys_, int kStages_, int kBlocksPerSm_>
struct Sm80QueriesConfig {
  static constexpr int kDqk = kDqk_, kDv = kDv_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kAtoms = kAtoms_;
  static constexpr int kKeys = kKeys_;      // keys a step
  static constexpr int kStages = kStages_;  // blocks of K and V in shared memory
  static constexpr int kBlocksPerSm = kBlocksPerSm_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpRows = 16 * kAtoms;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kQueryBytes = kRows * kDqk * 2, kGradientBytes = kRows * kDv * 2;
  static constexpr int kKeyBytes = kKeys * kDqk * 2, kValueBytes = kKeys * kDv * 2;
  static constexpr int kStageBytes = kKeyBytes + kValueBytes;
  static constexpr int kSharedBytes = kQueryBytes + kGradientBytes + kStages * kStageBytes;
  static_assert(kSharedBytes <= 99 * 1024, "what a block can have on compute capability 8.6, 8.9 and 12.0");
};

template <class Config>
struct Sm80QuerySums {
  float dq[Config::kAtoms][Config::kDqk / 2];
  float lse2[Config::kAtoms][2], delta[Config::kAtoms][2];

  /// `row` is this thread's first row, `pair` counts (batch, head).
  __device__ __forceinline__ Sm80QuerySums(const Sm80BackwardArgs& args, int pair, int row) {
#pragma unroll
    for (int m = 0; m < Config::kAtoms; ++m) {
#pragma unroll
      for (float& x : dq[m]) x = 0.0f;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = row + 16 * m + 8 * h;
        const std::int64_t at = static_cast<std::int64_t>(pair) * args.padded_rows + i;
        lse2[m][h] = i < args.problem.shape.Tq ? args.lse2[at] : INFINITY;
        delta[m][h] = i < args.problem.shape.Tq ? args.delta[at] : 0.0f;
      }
    }
  }

  struct Tiles {
    std::uint32_t queries, gradients, keys, values;  // the first two: this warp's rows
  };

  /// One block of keys; `row` and `column` are those of this thread's first element, `masked` that some are not seen.
  __device__ __forceinline__ void step(const ForwardArgs& args, const Tiles& tiles, int batch, int row, int column,
                                       bool masked) {
    constexpr int kKeys = Config::kKeys, kAtoms = Config::kAtoms;
    float p[kAtoms][kKeys / 2], ds[kAtoms][kKeys / 2];
    multiply_features<Config::kDqk, kAtoms, kKeys>(p, tiles.queries, tiles.keys);
    multiply_features<Config::kDv, kAtoms, kKeys>(ds, tiles.gradients, tiles.values);
#pragma unroll
    for (int m = 0; m < kAtoms; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const KeyRange range = masked ? key_range(args, batch, row + 16 * m + 8 * h) : KeyRange{0, INT_MAX};
        const int first = range.lo - column;
        const auto count = static_cast<unsigned>(max(range.hi - range.lo, 0));
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int i = 4 * j + 2 * h + c;
            const float x = exp2_mufu(fmaf(p[m][i], args.scale_log2, -lse2[m][h])) * (ds[m][i] - delta[m][h]);
            ds[m][i] = masked && static_cast<unsigned>(8 * j + c - first) >= count ? 0.0f : x;
          }
        }
      }
    }
    std::uint32_t operand[kAtoms][kKeys / 16][4];
    pack_operand<kAtoms, kKeys>(operand, ds);
    multiply_rows<Config::kDqk, kAtoms, kKeys>(dq, operand, tiles.keys);
  }
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    sm80_backward_queries_kernel(const __grid_constant__ Sm80BackwardArgs args) {
  extern __shared__ __align__(128) unsigned char memory[];
  const Shape& shape = args.problem.shape;
  const std::uint32_t queries = sm80::shared_address(memory), gradients = queries + Config::kQueryBytes,
                      stages = gradients + Config::kGradientBytes;
  // Tiles with most keys first; blocks of a head follow each other and share its keys in L2.
  const int pair = static_cast<int>(blockIdx.x) / args.tiles;
  const int tile = args.tiles - 1 - (static_cast<int>(blockIdx.x) - pair * args.tiles);
  const int batch = pair / shape.H, head = pair - batch * shape.H, kv_head = head / (shape.H / shape.G);
  const sm80::HeadRows k = sm80_head(args.k, args.k_stride, batch, kv_head, shape.Tk, shape.Dqk),
                       v = sm80_head(args.v, args.v_stride, batch, kv_head, shape.Tk, shape.Dv);
  const int first_row = tile * Config::kRows, last_row = min(first_row + Config::kRows, shape.Tq) - 1;
  const BlockRange blocks = block_range<Config::kKeys>(key_range(args.problem, batch, first_row).lo,
                                                       key_range(args.problem, batch, last_row).hi);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) & 31;
  const int warp_row = first_row + warp * Config::kWarpRows, thread_row = warp_row + lane / 4;
  const KeyRange first = key_range(args.problem, batch, warp_row),
                 last = key_range(args.problem, batch, min(warp_row + Config::kWarpRows, shape.Tq) - 1);
  const auto load_block = [&](int n, int stage) {
    const std::uint32_t place = stages + stage * Config::kStageBytes;
    sm80::load_tile<Config::kKeys, Config::kDqk, Config::kThreads>(place, k, n * Config::kKeys);
    sm80::load_tile<Config::kKeys, Config::kDv, Config::kThreads>(place + Config::kKeyBytes, v, n * Config::kKeys);
    sm80::copy_commit();
  };
  if (blocks.end > blocks.begin) {
    sm80::load_tile<Config::kRows, Config::kDqk, Config::kThreads>(
        queries, sm80_head(args.q, args.q_stride, batch, head, shape.Tq, shape.Dqk), first_row);
    sm80::load_tile<Config::kRows, Config::kDv, Config::kThreads>(
        gradients, sm80_head(args.d_out, args.d_out_stride, batch, head, shape.Tq, shape.Dv), first_row);
    load_block(blocks.end - 1, 0);
  }

  Sm80QuerySums<Config> sums(args, pair, thread_row);
  int stage = 0;
#pragma unroll 1
  for (int n = blocks.end - 1; n >= blocks.begin; --n) {
    sm80::copy_wait<0>();
    __syncthreads();  // block n is there, and every warp is done with block n + 1
    if (Config::kStages == 2 && n > blocks.begin) load_block(n - 1, stage ^ 1);
    const int key = n * Config::kKeys;
    if (warp_row < shape.Tq && last.hi > key && first.lo < key + Config::kKeys) {
      const std::uint32_t place = stages + stage * Config::kStageBytes;
      sums.step(args.problem,
                {queries + warp * Config::kWarpRows * Config::kDqk * 2,
                 gradients + warp * Config::kWarpRows * Config::kDv * 2, place, place + Config::kKeyBytes},
                batch, thread_row, key + 2 * (lane & 3), last.lo > key || first.hi < key + Config::kKeys);
    }
    if constexpr (Config::kStages == 2) {
      stage ^= 1;
    } else {
      __syncthreads();
      if (n > blocks.begin) load_block(n - 1, 0);
    }
  }
  store_rows<Config::kDqk, Config::kAtoms>(sm80_head(args.d_q, args.d_q_stride, batch, head, shape.Tq, shape.Dqk),
                                           queries, sums.dq, args.problem.scale, first_row);
}

template <class Config>
cudaError_t launch_sm80_backward_queries(Sm80BackwardArgs args, cudaStream_t stream) {
  const Shape& s = args.problem.shape;
  args.tiles = (s.Tq + Config::kRows - 1) / Config::kRows;
  const cudaError_t status = cudaFuncSetAttribute(sm80_backward_queries_kernel<Config>,
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (status != cudaSuccess) return status;
  const auto grid = static_cast<unsigned>(args.tiles) * static_cast<unsigned>(s.B * s.H);
  sm80_backward_queries_kernel<Config><<<grid, Config::kThreads, Config::kSharedBytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace sfa::flash
