// dK and dV of the sm_80 backward. A block of threads owns kKeys keys of one (batch, key/value head), a warp kAtoms x
// 16 of them, and walks over the query tiles that see them, query head by query head, in a fixed order. Where the sums
// of both do not fit into the registers, two instances of the kernel make one each.
#pragma once

#include "attention/flash/sm80_backward.cuh"

namespace sfa::flash {

/// What one instance computes.
enum class Sm80Sums : std::uint8_t { both, keys, values };

template <int kDqk_, int kDv_, int kWarps_, int kAtoms_, int kRows_, int kStages_, int kBlocksPerSm_,
          Sm80Sums kSums_ = Sm80Sums::both>
struct Sm80KeysConfig {
  static constexpr int kDqk = kDqk_, kDv = kDv_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kAtoms = kAtoms_;
  static constexpr int kRows = kRows_;      // query rows a step
  static constexpr int kStages = kStages_;  // query tiles in shared memory
  static constexpr int kBlocksPerSm = kBlocksPerSm_;
  static constexpr bool kSumKeys = kSums_ != Sm80Sums::values, kSumValues = kSums_ != Sm80Sums::keys;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpKeys = 16 * kAtoms;
  static constexpr int kKeys = kWarps * kWarpKeys;
  static constexpr int kKeyBytes = kKeys * kDqk * 2;
  static constexpr int kValueBytes = kSumKeys ? kKeys * kDv * 2 : 0;  // dV needs no V
  static constexpr int kQueryBytes = kRows * kDqk * 2, kGradientBytes = kRows * kDv * 2;
  static constexpr int kStageBytes = kQueryBytes + kGradientBytes + 2 * kRows * 4;  // Q, dO, LSE, D
  static constexpr int kSharedBytes = kKeyBytes + kValueBytes + kStages * kStageBytes;
  static_assert(kSm80PaddedRows % kRows == 0);
  static_assert(kSharedBytes <= 99 * 1024, "what a block can have on compute capability 8.6, 8.9 and 12.0");
  static_assert(kKeys * (kDqk > kDv ? kDqk : kDv) * 2 <= kSharedBytes, "sums leave through shared memory");
};

/// Query rows [begin, end) that see some key of [first_key, end_key): two binary searches, for neither end of a row's
/// keys ever decreases along the rows.
__device__ __forceinline__ BlockRange sm80_rows_that_see(const ForwardArgs& args, int batch, int first_key,
                                                         int end_key) {
  int begin = 0, end = args.shape.Tq;
  while (begin < end) {  // first row whose keys reach beyond first_key
    const int middle = (begin + end) / 2;
    if (key_range(args, batch, middle).hi > first_key)
      end = middle;
    else
      begin = middle + 1;
  }
  BlockRange rows{begin, args.shape.Tq};
  int low = begin;
  while (low < rows.end) {  // first row whose keys begin behind end_key
    const int middle = (low + rows.end) / 2;
    if (key_range(args, batch, middle).lo >= end_key)
      rows.end = middle;
    else
      low = middle + 1;
  }
  return rows;
}

/// S^T becomes P^T, 0 where a query does not see the key.
template <class Config>
__device__ __forceinline__ void sm80_probabilities(float (&s)[Config::kAtoms][Config::kRows / 2],
                                                   const float* __restrict__ lse2, float scale_log2) {
#pragma unroll
  for (int j = 0; j < Config::kRows / 8; ++j) {
    const float2 l = *reinterpret_cast<const float2*>(lse2 + 8 * j);
#pragma unroll
    for (int m = 0; m < Config::kAtoms; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float* x = &s[m][4 * j + 2 * h];
        x[0] = exp2_mufu(fmaf(x[0], scale_log2, -l.x));
        x[1] = exp2_mufu(fmaf(x[1], scale_log2, -l.y));
      }
  }
}

/// `row` and `key` are those of this thread's first element.
template <class Config>
__device__ __forceinline__ void sm80_mask_keys(float (&p)[Config::kAtoms][Config::kRows / 2], const ForwardArgs& args,
                                               int batch, int row, int key) {
#pragma unroll
  for (int j = 0; j < Config::kRows / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const KeyRange range = key_range(args, batch, row + 8 * j + c);
#pragma unroll
      for (int m = 0; m < Config::kAtoms; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int at = key + 16 * m + 8 * h;
          if (at < range.lo || at >= range.hi) p[m][4 * j + 2 * h + c] = 0.0f;
        }
    }
  }
}

template <class Config>
struct Sm80KeySums {
  float dk[Config::kAtoms][Config::kSumKeys ? Config::kDqk / 2 : 2];
  float dv[Config::kAtoms][Config::kSumValues ? Config::kDv / 2 : 2];

  __device__ __forceinline__ Sm80KeySums() {
#pragma unroll
    for (int m = 0; m < Config::kAtoms; ++m) {
#pragma unroll
      for (float& x : dk[m]) x = 0.0f;
#pragma unroll
      for (float& x : dv[m]) x = 0.0f;
    }
  }

  /// Shared memory that one step reads: this warp's keys and values, the tiles of queries and dO, LSE and D at this
  /// thread's first query.
  struct Tiles {
    std::uint32_t keys, values, queries, gradients;
    const float *lse2, *delta;
  };

  /// One tile of queries; `row` and `key` are those of this thread's first element, `masked` that some are not seen.
  __device__ __forceinline__ void step(const ForwardArgs& args, const Tiles& tiles, int batch, int row, int key,
                                       bool masked) {
    constexpr int kRows = Config::kRows, kAtoms = Config::kAtoms;
    float p[kAtoms][kRows / 2];
    multiply_features<Config::kDqk, kAtoms, kRows>(p, tiles.keys, tiles.queries);
    sm80_probabilities<Config>(p, tiles.lse2, args.scale_log2);
    if (masked) sm80_mask_keys<Config>(p, args, batch, row, key);
    std::uint32_t operand[kAtoms][kRows / 16][4];
    if constexpr (Config::kSumValues) {
      pack_operand<kAtoms, kRows>(operand, p);
      multiply_rows<Config::kDv, kAtoms, kRows>(dv, operand, tiles.gradients);
    }
    if constexpr (Config::kSumKeys) {
      float ds[kAtoms][kRows / 2];
      multiply_features<Config::kDv, kAtoms, kRows>(ds, tiles.values, tiles.gradients);
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) {
        const float2 d = *reinterpret_cast<const float2*>(tiles.delta + 8 * j);
#pragma unroll
        for (int m = 0; m < kAtoms; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) ds[m][4 * j + i] = p[m][4 * j + i] * (ds[m][4 * j + i] - (i % 2 ? d.y : d.x));
      }
      pack_operand<kAtoms, kRows>(operand, ds);
      multiply_rows<Config::kDqk, kAtoms, kRows>(dk, operand, tiles.queries);
    }
  }
};

/// A walk over query heads and, in each, query tiles.
struct Sm80QueryWalk {
  int head, tile;
  int first_tile, end_tile, end_head;

  __device__ __forceinline__ bool more() const { return head < end_head; }
  __device__ __forceinline__ void advance() {
    if (++tile == end_tile) tile = first_tile, ++head;
  }
};

template <class Config>
__device__ __forceinline__ void sm80_load_queries(const Sm80BackwardArgs& args, const Sm80QueryWalk& at, int batch,
                                                  std::uint32_t stage) {
  const Shape& shape = args.problem.shape;
  const int first = at.tile * Config::kRows;
  sm80::load_tile<Config::kRows, Config::kDqk, Config::kThreads>(
      stage, sm80_head(args.q, args.q_stride, batch, at.head, shape.Tq, shape.Dqk), first);
  sm80::load_tile<Config::kRows, Config::kDv, Config::kThreads>(
      stage + Config::kQueryBytes, sm80_head(args.d_out, args.d_out_stride, batch, at.head, shape.Tq, shape.Dv), first);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < Config::kRows / 2) {  // four rows each of LSE, then of D
    const int quarter = thread % (Config::kRows / 4);
    const float* from = (thread < Config::kRows / 4 ? args.lse2 : args.delta) +
                        (static_cast<std::int64_t>(batch) * shape.H + at.head) * args.padded_rows + first + 4 * quarter;
    sm80::copy_async(stage + Config::kQueryBytes + Config::kGradientBytes + 16 * thread, from, true);
  }
  sm80::copy_commit();
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    sm80_backward_keys_kernel(const __grid_constant__ Sm80BackwardArgs args) {
  extern __shared__ __align__(128) unsigned char memory[];
  constexpr int kStageAt = Config::kKeyBytes + Config::kValueBytes;
  const Shape& shape = args.problem.shape;
  const std::uint32_t shared = sm80::shared_address(memory);
  const int pair = static_cast<int>(blockIdx.x) / args.tiles, tile = static_cast<int>(blockIdx.x) - pair * args.tiles;
  const int batch = pair / shape.G, kv_head = pair - batch * shape.G;
  const int first_key = tile * Config::kKeys;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) & 31;
  const int warp_key = first_key + warp * Config::kWarpKeys;
  const BlockRange rows = sm80_rows_that_see(args.problem, batch, first_key, min(first_key + Config::kKeys, shape.Tk));

  Sm80QueryWalk loading;
  loading.first_tile = rows.begin / Config::kRows;
  loading.end_tile = (rows.end + Config::kRows - 1) / Config::kRows;
  loading.head = kv_head * (shape.H / shape.G);
  loading.end_head = rows.begin < rows.end ? loading.head + shape.H / shape.G : loading.head;
  loading.tile = loading.first_tile;
  Sm80QueryWalk at = loading;
  if (loading.more()) {
    sm80::load_tile<Config::kKeys, Config::kDqk, Config::kThreads>(
        shared, sm80_head(args.k, args.k_stride, batch, kv_head, shape.Tk, shape.Dqk), first_key);
    if constexpr (Config::kSumKeys)
      sm80::load_tile<Config::kKeys, Config::kDv, Config::kThreads>(
          shared + Config::kKeyBytes, sm80_head(args.v, args.v_stride, batch, kv_head, shape.Tk, shape.Dv), first_key);
    sm80_load_queries<Config>(args, loading, batch, shared + kStageAt);
    loading.advance();
  }

  Sm80KeySums<Config> sums;
  int stage = 0;
#pragma unroll 1
  for (; at.more(); at.advance()) {
    sm80::copy_wait<0>();
    __syncthreads();  // the tile is there, and every warp is done with the one before
    if (Config::kStages == 2 && loading.more()) {
      sm80_load_queries<Config>(args, loading, batch, shared + kStageAt + (stage ^ 1) * Config::kStageBytes);
      loading.advance();
    }
    const int row = at.tile * Config::kRows;
    const KeyRange first = key_range(args.problem, batch, row),
                   last = key_range(args.problem, batch, min(row + Config::kRows, shape.Tq) - 1);
    if (last.hi > warp_key && first.lo < warp_key + Config::kWarpKeys) {
      const int place = kStageAt + stage * Config::kStageBytes;
      const float* lse2 =
          reinterpret_cast<const float*>(memory + place + Config::kQueryBytes + Config::kGradientBytes) +
          2 * (lane & 3);
      sums.step(args.problem,
                {shared + warp * Config::kWarpKeys * Config::kDqk * 2,
                 shared + Config::kKeyBytes + warp * Config::kWarpKeys * Config::kDv * 2, shared + place,
                 shared + place + Config::kQueryBytes, lse2, lse2 + Config::kRows},
                batch, row + 2 * (lane & 3), warp_key + lane / 4,
                last.lo > warp_key || first.hi < warp_key + Config::kWarpKeys);
    }
    if constexpr (Config::kStages == 2) {
      stage ^= 1;
    } else {
      __syncthreads();
      if (loading.more()) {
        sm80_load_queries<Config>(args, loading, batch, shared + kStageAt);
        loading.advance();
      }
    }
  }
  if constexpr (Config::kSumKeys)
    store_rows<Config::kDqk, Config::kAtoms>(sm80_head(args.d_k, args.d_k_stride, batch, kv_head, shape.Tk, shape.Dqk),
                                             shared, sums.dk, args.problem.scale, first_key);
  if constexpr (Config::kSumValues)
    store_rows<Config::kDv, Config::kAtoms>(sm80_head(args.d_v, args.d_v_stride, batch, kv_head, shape.Tk, shape.Dv),
                                            shared, sums.dv, 1.0f, first_key);
}

template <class Config>
cudaError_t launch_sm80_backward_keys(Sm80BackwardArgs args, cudaStream_t stream) {
  const Shape& s = args.problem.shape;
  args.tiles = (s.Tk + Config::kKeys - 1) / Config::kKeys;
  const cudaError_t status = cudaFuncSetAttribute(sm80_backward_keys_kernel<Config>,
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (status != cudaSuccess) return status;
  const auto grid = static_cast<unsigned>(args.tiles) * static_cast<unsigned>(s.B * s.G);
  sm80_backward_keys_kernel<Config><<<grid, Config::kThreads, Config::kSharedBytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace sfa::flash
