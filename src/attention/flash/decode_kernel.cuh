// The decoding kernel: one block walks its part (decode_parts.h), unit by unit. The warps of a block take the tiles of
// a unit in turn, and each streams its own tiles through its own ring of buffers with cp.async: no barrier is crossed
// between the first and the last tile of a unit. Scores, softmax and the product with V stay in the warp; at the end of
// a unit the warps' sums are joined in shared memory, in order, and the partial result goes to the workspace.
//
// The products run on tensor cores with keys (or features of V) as rows and query rows as columns, eight at a time:
//   S^T [tokens x rows] = K Q^T (a policy: decode_dense.cuh, decode_sparse.cuh),  O^T [Dv x rows] += V^T P^T.
#pragma once

#include <algorithm>

#include "attention/flash/decode_tiles.cuh"
#include "cuda/exp2.cuh"

namespace sfa::flash {

/// Stands for "no key yet" in running maxima: finite, so that differences stay numbers.
inline constexpr float kNoMaximum = -1e30f;
/// The running maximum is replaced when a score exceeds it by this (base 2): sums stay below 2^8 times their number.
inline constexpr float kLazyMaximum = 8.0f;

/// What a warp knows about the unit at hand.
struct UnitRanges {
  int lo[kUnitRows], hi[kUnitRows];  ///< of every row
  int all_lo, all_hi;                ///< keys that some row sees
  int full_lo, full_hi;              ///< keys that every row sees
};

/// A warp fills its own.
__device__ inline void fill_ranges(const DecodeArgs& a, const DecodeUnit& unit, UnitRanges& mine) {
  const int lane = threadIdx.x % 32;
  const bool real = lane < unit.rows;
  const int2 span = real ? decode_span(a, unit.b, unit.token(a, lane)) : int2{0, 0};
  const bool sees = span.x < span.y;
  const int big = 0x7fffffff;
  const int all_lo = __reduce_min_sync(0xffffffffu, sees ? span.x : big);
  const int all_hi = __reduce_max_sync(0xffffffffu, sees ? span.y : 0);
  const int full_lo = __reduce_max_sync(0xffffffffu, real ? span.x : 0);
  const int full_hi = __reduce_min_sync(0xffffffffu, real ? span.y : big);
  if (lane < kUnitRows) {
    mine.lo[lane] = span.x;
    mine.hi[lane] = span.y;
  }
  if (lane == 0) {
    mine.all_lo = min(all_lo, all_hi);
    mine.all_hi = all_hi;
    mine.full_lo = full_lo;
    mine.full_hi = full_hi;
  }
  __syncwarp();
}

/// What the blocks of an SM share; a block itself takes 1 KB of it.
inline constexpr int kSharedMemory = 228 * 1024;

/// Shared memory of a block: the warps' maxima and sums of P, the policy's, the warps' ranges and private areas, their
/// sums of a unit, and their rings. `key` is the bytes of a sparse key, `rows` the number of a unit's rows.
template <class Scores>
struct DecodeLayout {
  using C = typename Scores::Config;
  using Values = typename ValueTile<C>::Rows;
  static constexpr int kScales = C::kInt8 ? C::kTokens * 2 : 0;
  static constexpr int kStats = 2 * C::kWarps * kUnitRows * 4;
  static constexpr int kUnits = kStats + Scores::kSharedBytes;
  static constexpr int kPrivate = kUnits + C::kWarps * static_cast<int>(sizeof(UnitRanges));
  static constexpr int kSums = kPrivate + C::kWarps * Scores::kWarpBytes;
  static constexpr int kSumPitch = C::kDv + 4;  // floats
  static_assert(sizeof(UnitRanges) % 16 == 0 && Scores::kSharedBytes % 16 == 0 && Scores::kWarpBytes % 16 == 0);

  static constexpr int sums(int rows) { return C::kWarps * rows * kSumPitch * 4; }
  /// A tile: keys, rows of V, their scales.
  static constexpr int stage(int key) { return Scores::tile_bytes(key) + Values::kBytes + kScales; }
  static constexpr int bytes(int key, int rows, int stages) {
    return kSums + sums(rows) + C::kWarps * stages * stage(key);
  }
  /// Stages of a ring: C::kStages, or what there is room for when sparse rows are long or rows are many.
  static constexpr int stages(int key, int rows) {
    int n = C::kStages;
    while (n > 2 && bytes(key, rows, n) > kSharedMemory / C::kBlocks - 1024) --n;
    return n;
  }
  /// A block alone on an SM has room for it.
  static constexpr bool fits(int key, int rows) { return bytes(key, rows, 2) <= kSharedMemory - 1024; }
};

/// A warp's O^T as [rows][Dv].
template <class Scores>
__device__ __forceinline__ void store_sums(const float (&o)[Scores::Config::kDv / 16][Scores::Config::kColumns][4],
                                           float* to, int rows) {
  using C = typename Scores::Config;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int d = 0; d < C::kDv / 16; ++d)
#pragma unroll
    for (int n = 0; n < C::kColumns; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = n * 8 + lane % 4 * 2 + e % 2;
        if (row < rows) to[row * DecodeLayout<Scores>::kSumPitch + ValueTile<C>::feature(d, e)] = o[d][n][e];
      }
}

/// The warps' sums of one unit, joined in the order of the warps.
template <class Scores>
__device__ __forceinline__ void store_partial(const DecodeArgs& a, const DecodeUnit& unit, std::int64_t slot,
                                              const float* sums, const float* maxima, const float* totals) {
  using C = typename Scores::Config;
  constexpr int kPitch = DecodeLayout<Scores>::kSumPitch;
  const int Dv = a.p.shape.Dv;
  const std::int64_t first = slot * a.unit_rows();
  for (int r = threadIdx.x / 32; r < unit.rows; r += C::kWarps) {
    float top = kNoMaximum, factor[C::kWarps], total = 0;
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) top = fmaxf(top, maxima[w * kUnitRows + r]);
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) {
      factor[w] = exp2_mufu(maxima[w * kUnitRows + r] - top);
      total += factor[w] * totals[w * kUnitRows + r];
    }
    for (int c = threadIdx.x % 32; c < Dv; c += 32) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < C::kWarps; ++w) sum += factor[w] * sums[(w * a.unit_rows() + r) * kPitch + c];
      a.partial_out[(first + r) * Dv + c] = sum;
    }
    if (threadIdx.x % 32 == 0) a.partial_stats[first + r] = {top, total};
  }
}

/// What a warp reads of one unit: its stretch of tiles, first, first + kWarps, ..., `count` of them.
template <class Scores>
struct Stretch {
  using C = typename Scores::Config;
  int index = 0;          ///< of the unit
  std::int64_t next = 0;  ///< tile, in the row of all tiles, behind the stretch of the whole block
  int first = 0, count = 0, lo = 0, hi = 0;

  /// From tile `at` on, to the end of the unit or of the part. Fills the warp's ranges.
  __device__ __forceinline__ void begin(const DecodeArgs& a, std::int64_t at, std::int64_t part_end,
                                        UnitRanges& ranges) {
    index = static_cast<int>(at / a.split.tiles);
    const std::int64_t unit_begin = std::int64_t{index} * a.split.tiles;
    next = min(part_end, unit_begin + a.split.tiles);
    fill_ranges(a, DecodeUnit(a, index), ranges);
    lo = ranges.all_lo;
    hi = ranges.all_hi;
    const int begin = static_cast<int>(at - unit_begin) + a.split.first_tile,
              end = static_cast<int>(next - unit_begin) + a.split.first_tile;
    first = max(begin, lo / C::kTokens) + static_cast<int>(threadIdx.x / 32);
    const int last = min(end, (hi + C::kTokens - 1) / C::kTokens);
    count = first < last ? (last - first + C::kWarps - 1) / C::kWarps : 0;
  }
  /// First key of the warp's i-th tile.
  [[nodiscard]] __device__ __forceinline__ int key(int i) const { return (first + i * C::kWarps) * C::kTokens; }
};

template <class Scores>
__global__ void __launch_bounds__(Scores::Config::kWarps * 32, Scores::Config::kBlocks)
    decode_kernel(const __grid_constant__ DecodeArgs a) {
  using C = typename Scores::Config;
  using Layout = DecodeLayout<Scores>;
  using Values = typename Layout::Values;
  extern __shared__ __align__(16) char memory[];
  const int warp = threadIdx.x / 32;
  float* maxima = reinterpret_cast<float*>(memory);
  float* totals = maxima + C::kWarps * kUnitRows;
  char* shared = memory + Layout::kStats;
  UnitRanges& ranges = reinterpret_cast<UnitRanges*>(memory + Layout::kUnits)[warp];
  char* mine = memory + Layout::kPrivate + warp * Scores::kWarpBytes;
  float* sums = reinterpret_cast<float*>(memory + Layout::kSums);
  const int key = a.p.k_sparse.row_bytes(), key_bytes = Scores::tile_bytes(key), stage_bytes = Layout::stage(key);
  char* ring = memory + Layout::kSums + Layout::sums(a.unit_rows()) + warp * a.stages * stage_bytes;

  const std::int64_t part_end = a.split.begin(blockIdx.x + 1);
  Stretch<Scores> stretch;
  int filled = 0, read = 0;  // stages of the ring
  const auto fetch = [&](const Scores& scores, const Values& values, int i) {
    if (i < stretch.count) {
      char* stage = ring + filled * stage_bytes;
      scores.load(stage, stretch.key(i), stretch.lo, stretch.hi);
      values.load(stage + key_bytes, stretch.key(i), stretch.lo, stretch.hi);
      if constexpr (C::kInt8) {
        load_scales<C::kTokens>(unit_scales(a.p.v_scale, a.p.v_scale_stride, DecodeUnit(a, stretch.index)),
                                stage + key_bytes + Values::kBytes, stretch.key(i), stretch.hi);
      }
      filled = filled + 1 == a.stages ? 0 : filled + 1;
    }
    copy_commit();
  };
  // A unit's first tiles are fetched before the sums of the last one are joined.
  const auto begin = [&](std::int64_t at) {
    __syncwarp();  // all lanes are done with the ring and the ranges
    stretch.begin(a, at, part_end, ranges);
    const DecodeUnit unit(a, stretch.index);
    const Scores scores(a, unit);
    const Values values(a.p.v, a.p.v_stride, ValueTile<C>::kElement, unit.b, unit.g, a.p.shape.Dv);
    for (int i = 0; i < a.stages - 1; ++i) fetch(scores, values, i);
  };

  Scores::clear(mine);
  begin(a.split.begin(blockIdx.x));
  Scores::prepare(a, DecodeUnit(a, stretch.index), shared);
  __syncthreads();
  for (bool more = true; more;) {
    const DecodeUnit unit(a, stretch.index);
    Scores scores(a, unit);
    scores.start(shared, mine);
    const Values values(a.p.v, a.p.v_stride, ValueTile<C>::kElement, unit.b, unit.g, a.p.shape.Dv);
    float o[C::kDv / 16][C::kColumns][4] = {};
    for (int i = 0; i < stretch.count; ++i) {
      wait_for_oldest(a.stages - 1);
      __syncwarp();  // all lanes' copies are there, and all lanes are done with the stage that is filled next
      fetch(scores, values, i + a.stages - 1);
      const char* stage = ring + read * stage_bytes;
      Weights weights[C::kTokens / 16][C::kColumns];
      scores.weigh(stage, stage + key_bytes + Values::kBytes, stretch.key(i), ranges, weights, o);
#pragma unroll
      for (int m = 0; m < C::kTokens / 16; ++m)
        ValueTile<C>::add(o, stage + key_bytes + m * 16 * Values::kPitch, weights[m]);
      read = read + 1 == a.stages ? 0 : read + 1;
    }
    scores.finish(maxima + warp * kUnitRows, totals + warp * kUnitRows);
    store_sums<Scores>(o, sums + warp * a.unit_rows() * Layout::kSumPitch, unit.rows);
    const std::int64_t slot = std::int64_t{blockIdx.x} + stretch.index;
    more = stretch.next < part_end;
    if (more) begin(stretch.next);
    __syncthreads();  // sums are there; queries are no longer read
    store_partial<Scores>(a, unit, slot, sums, maxima, totals);
    if (more) Scores::prepare(a, DecodeUnit(a, stretch.index), shared);
    __syncthreads();
  }
}

/// Cuts the work into one part for every block that the card holds at a time, and launches. `args` comes with its
/// parameters alone.
template <class Scores>
cudaError_t launch_decode(DecodeArgs args, cudaStream_t stream) {
  using C = typename Scores::Config;
  using Layout = DecodeLayout<Scores>;
  static_assert(C::kStages >= 2 && C::kStages <= 4);
  static thread_local Residency known;
  const int key = args.p.k_sparse.row_bytes(),
            rows = std::min(kUnitRows, args.p.shape.H / args.p.shape.G * args.p.shape.Tq);
  args.stages = Layout::stages(key, rows);
  const int bytes = Layout::bytes(key, rows, args.stages);
  cudaError_t status = known.find(reinterpret_cast<const void*>(decode_kernel<Scores>), C::kWarps * 32, bytes);
  if (status != cudaSuccess) return status;
  split_decode(args, C::kTokens, C::kWarps, known.blocks);
  if (args.split.tiles > 0) decode_kernel<Scores><<<args.split.parts, C::kWarps * 32, bytes, stream>>>(args);
  status = cudaGetLastError();
  return status != cudaSuccess ? status : decode_join(args, stream);
}

}  // namespace sfa::flash
