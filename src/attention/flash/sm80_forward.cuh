// The tiled attention forward for every card from compute capability 8.0 on (mma.sync, cp.async):
// O = softmax(scale Q K^T) V and LSE over the key ranges of flash_params.h.
//
// A block of threads owns kRows query rows of one (batch, head), a warp kAtoms x 16 of them, and walks the key blocks
// from the last to the first with the online softmax of forward_softmax.cuh. Queries stay in shared memory, as they are
// or compressed 2 of 4 (sm80_scores.cuh); K and V of the next block are copied there while those of this one are
// multiplied. Head sizes below the instance's are filled with zeros on the way. Saves LSE; accumulates O in registers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "attention/flash/forward_schedule.cuh"
#include "attention/flash/forward_softmax.cuh"
#include "attention/flash/sm80_scores.cuh"
#include "cuda/sm80_mma.cuh"

namespace sfa::flash {

template <int kDqk_, int kDv_, int kWarps_, int kAtoms_, int kKeys_, int kBlocksPerSm_,
          template <int kDqk, int kAtoms, int kKeys> class ScoresPolicy>
struct Sm80ForwardConfig {
  static constexpr int kDqk = kDqk_, kDv = kDv_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kAtoms = kAtoms_;  // blocks of 16 rows a warp: each fragment of K and V serves them all
  static constexpr int kKeys = kKeys_;    // a block of keys
  static constexpr int kBlocksPerSm = kBlocksPerSm_;
  using ScoreProduct = ScoresPolicy<kDqk_, kAtoms_, kKeys_>;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpRows = 16 * kAtoms;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kStages = 2;
  static constexpr int kQueryBytes = kRows * (kDqk > kDv ? kDqk : kDv) * 2;  // O leaves through it
  static constexpr int kKeyBytes = kKeys * kDqk * 2, kValueBytes = kKeys * kDv * 2;
  static constexpr int kSharedBytes = kQueryBytes + kStages * (kKeyBytes + kValueBytes);
  static_assert(kSharedBytes <= 99 * 1024, "what a block can have on compute capability 8.6, 8.9 and 12.0");
};

struct Sm80ForwardArgs {
  ForwardArgs problem;  // shape, ranges, scale_log2, lse, row_tiles
  const void *q, *k, *v;
  void* out;
  Strides q_stride, k_stride, v_stride, out_stride;
};

/// Which blocks of keys a warp's rows need.
template <class Config>
struct Sm80WarpRows {
  BlockRange own;
  int unmasked_begin, unmasked_end;  // blocks that every row sees whole

  __device__ __forceinline__ Sm80WarpRows(const ForwardArgs& args, int batch, int first_row) {
    const int last = args.shape.Tq - 1;
    const KeyRange first = key_range(args, batch, first_row),
                   final = key_range(args, batch, min(first_row + Config::kWarpRows - 1, last));
    own = block_range<Config::kKeys>(first.lo, final.hi);
    if (first_row > last) own.end = own.begin;
    unmasked_begin = (final.lo + Config::kKeys - 1) / Config::kKeys;
    unmasked_end = first.hi / Config::kKeys;
  }
  __device__ __forceinline__ bool needs(int n) const { return n >= own.begin && n < own.end; }
  __device__ __forceinline__ bool masked(int n) const { return n < unmasked_begin || n >= unmasked_end; }
};

/// One warp's rows: sums, softmax state, and one step over a block of keys.
template <class Config>
struct Sm80Rows {
  float o[Config::kAtoms][Config::kDv / 2];
  SoftmaxState softmax[Config::kAtoms];

  __device__ __forceinline__ Sm80Rows() {
#pragma unroll
    for (int m = 0; m < Config::kAtoms; ++m)
#pragma unroll
      for (float& x : o[m]) x = 0.0f;
  }

  using Scores = float[Config::kAtoms][Config::kKeys / 2];

  /// O += P V.
  __device__ __forceinline__ void add_values(const std::uint32_t (&p)[Config::kAtoms][Config::kKeys / 16][4],
                                             std::uint32_t values) {
    using sm80::Tile;
    const std::uint32_t v_lane = Tile<Config::kDv>::lane_rows_first(values);
#pragma unroll
    for (int step = 0; step < Config::kKeys / 16; ++step) {
#pragma unroll
      for (int j = 0; j < Config::kDv / 16; ++j) {
        std::uint32_t b[4];
        sm80::load_matrices_transposed(b, Tile<Config::kDv>::at(v_lane, 16 * step, 16 * j));
#pragma unroll
        for (int m = 0; m < Config::kAtoms; ++m) {
          sm80::multiply_add(&o[m][8 * j], p[m][step], b[0], b[1]);
          sm80::multiply_add(&o[m][8 * j + 4], p[m][step], b[2], b[3]);
        }
      }
    }
  }

  /// One block of keys; `row` and `column` are those of this thread's first score.
  __device__ __forceinline__ void step(const Sm80ForwardArgs& args, int batch, int row, int column, bool masked,
                                       const typename Config::ScoreProduct& product, const std::uint32_t (&tiles)[3]) {
    Scores s;
#pragma unroll
    for (int m = 0; m < Config::kAtoms; ++m)
#pragma unroll
      for (float& x : s[m]) x = 0.0f;
    product.multiply(s, tiles[0], tiles[1]);
    std::uint32_t p[Config::kAtoms][Config::kKeys / 16][4];
#pragma unroll
    for (int m = 0; m < Config::kAtoms; ++m) {
      if (masked) apply_mask<Config::kKeys>(s[m], args.problem, batch, row + 16 * m, column);
      float factor[2];
      softmax_step<Config::kKeys, 0>(s[m], softmax[m], args.problem.scale_log2, factor);
      rescale(o[m], factor);
      pack_probabilities<Config::kKeys, Config::kKeys>(p[m], s[m]);
    }
    add_values(p, tiles[2]);
  }

  /// O / l to the rows' place in the tile `out`, LSE to memory; `row` is this thread's first row.
  __device__ __forceinline__ void finish(const ForwardArgs& args, float* lse, std::uint32_t out, int row) {
#pragma unroll
    for (int m = 0; m < Config::kAtoms; ++m) {
      float inverse[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float l = softmax[m].sum[h];
        l += __shfl_xor_sync(0xffffffffu, l, 1);
        l += __shfl_xor_sync(0xffffffffu, l, 2);
        const bool empty = softmax[m].maximum[h] == kMasked;
        inverse[h] = empty ? 0.0f : 1.0f / l;
        const int at = row + 16 * m + 8 * h;
        constexpr float kLn2 = 0.693147180559945309f;
        if ((threadIdx.x & 3) == 0 && at < args.shape.Tq)
          lse[at] = empty ? -INFINITY : (softmax[m].maximum[h] * args.scale_log2 + __log2f(l)) * kLn2;
      }
      sm80::store_sums<Config::kDv>(out, 16 * m, o[m], inverse);
    }
  }
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    sm80_forward_kernel(const __grid_constant__ Sm80ForwardArgs args) {
  extern __shared__ __align__(128) unsigned char memory[];
  const Shape& shape = args.problem.shape;
  const std::uint32_t query_tile = sm80::shared_address(memory), keys = query_tile + Config::kQueryBytes,
                      values = keys + Config::kStages * Config::kKeyBytes;
  // Tiles with most keys first; blocks of a head follow each other and share its keys in L2.
  const int pair = static_cast<int>(blockIdx.x) / args.problem.row_tiles;
  const int tile = args.problem.row_tiles - 1 - (static_cast<int>(blockIdx.x) - pair * args.problem.row_tiles);
  const int batch = pair / shape.H, head = pair - batch * shape.H, kv_head = head / (shape.H / shape.G);
  const auto head_of = [&](const void* data, const Strides& stride, int h, int tokens, int features) {
    const auto* rows = static_cast<const std::uint16_t*>(data) + batch * stride.batch + h * stride.head;
    return sm80::HeadRows{rows, stride.token, tokens, features};
  };
  const sm80::HeadRows k = head_of(args.k, args.k_stride, kv_head, shape.Tk, shape.Dqk),
                       v = head_of(args.v, args.v_stride, kv_head, shape.Tk, shape.Dv);

  const int first_row = tile * Config::kRows, last_row = min(first_row + Config::kRows, shape.Tq) - 1;
  const BlockRange blocks = block_range<Config::kKeys>(key_range(args.problem, batch, first_row).lo,
                                                       key_range(args.problem, batch, last_row).hi);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) & 31;
  const int warp_row = first_row + warp * Config::kWarpRows, thread_row = warp_row + lane / 4;
  const Sm80WarpRows<Config> need(args.problem, batch, warp_row);
  const auto load_block = [&](int n, int stage) {
    sm80::load_tile<Config::kKeys, Config::kDqk, Config::kThreads>(keys + stage * Config::kKeyBytes, k,
                                                                   n * Config::kKeys);
    sm80::load_tile<Config::kKeys, Config::kDv, Config::kThreads>(values + stage * Config::kValueBytes, v,
                                                                  n * Config::kKeys);
    sm80::copy_commit();
  };

  Sm80Rows<Config> rows;
  typename Config::ScoreProduct product;
  if (blocks.end > blocks.begin) {
    sm80::load_tile<Config::kRows, Config::kDqk, Config::kThreads>(
        query_tile, head_of(args.q, args.q_stride, head, shape.Tq, shape.Dqk), first_row);
    if constexpr (Config::ScoreProduct::kPrepares) sm80::copy_commit();
    load_block(blocks.end - 1, 0);
    if constexpr (Config::ScoreProduct::kPrepares) {
      sm80::copy_wait<1>();
      __syncthreads();  // the queries are there
      product.prepare(query_tile + warp * Config::kWarpRows * Config::kDqk * 2);
    }
  }
  int stage = 0;
#pragma unroll 1
  for (int n = blocks.end - 1; n >= blocks.begin; --n) {
    sm80::copy_wait<0>();
    __syncthreads();  // block n is there, and every warp is done with block n + 1
    if (n > blocks.begin) load_block(n - 1, stage ^ 1);
    if (need.needs(n))
      rows.step(args, batch, thread_row, n * Config::kKeys + 2 * (lane & 3), need.masked(n), product,
                {query_tile + warp * Config::kWarpRows * Config::kDqk * 2, keys + stage * Config::kKeyBytes,
                 values + stage * Config::kValueBytes});
    stage ^= 1;
  }
  __syncthreads();  // O takes the place of the queries
  const std::uint32_t out = query_tile + warp * Config::kWarpRows * Config::kDv * 2;
  rows.finish(args.problem, args.problem.lse + static_cast<std::int64_t>(pair) * shape.Tq, out, thread_row);
  __syncwarp();
  sm80::write_rows<Config::kWarpRows, Config::kDv>(head_of(args.out, args.out_stride, head, shape.Tq, shape.Dv), out, 0,
                                                   warp_row);
}

template <class Config>
cudaError_t launch_sm80_forward(const ForwardParams& params, cudaStream_t stream) {
  const Shape& s = params.shape;
  Sm80ForwardArgs args;
  args.problem.shape = s;
  args.problem.ranges = params.ranges;
  args.problem.scale = params.scale;
  args.problem.scale_log2 = static_cast<float>(params.scale * 1.4426950408889634);
  args.problem.lse = params.lse;
  args.problem.row_tiles = (s.Tq + Config::kRows - 1) / Config::kRows;
  args.q = params.q, args.k = params.k, args.v = params.v, args.out = params.out;
  args.q_stride = params.q_stride, args.k_stride = params.k_stride;
  args.v_stride = params.v_stride, args.out_stride = params.out_stride;
  const cudaError_t status = cudaFuncSetAttribute(sm80_forward_kernel<Config>,
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (status != cudaSuccess) return status;
  const auto grid = static_cast<unsigned>(args.problem.row_tiles) * static_cast<unsigned>(s.B * s.H);
  sm80_forward_kernel<Config><<<grid, Config::kThreads, Config::kSharedBytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace sfa::flash
