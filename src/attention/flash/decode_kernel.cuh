// The decoding kernel: one block walks its part (decode_parts.h), unit by unit. The warps of a block take the tiles of
// a unit in turn, and each streams its own tiles through its own ring of buffers with cp.async: no barrier is crossed
// between the first and the last tile of a unit. Scores, softmax and the product with V stay in the warp; at the end of
// a unit the warps' sums are joined in shared memory, in order, and the partial result goes to the workspace.
//
// The products run on tensor cores with keys (or features of V) as rows and query rows as columns, eight at a time:
//   S^T [tokens x rows] = K Q^T (a policy: decode_dense.cuh, decode_sparse.cuh),  O^T [Dv x rows] += V^T P^T.
#pragma once

#include "attention/flash/decode_args.cuh"
#include "attention/flash/decode_warp.cuh"
#include "cuda/exp2.cuh"

namespace sfa::flash {

/// Stands for "no key yet" in running maxima: finite, so that differences stay numbers.
inline constexpr float kNoMaximum = -1e30f;
/// The running maximum is replaced when a score exceeds it by this (base 2): sums stay below 2^8 times their number.
inline constexpr float kLazyMaximum = 8.0f;

/// What all threads of a block share about the unit at hand.
struct UnitRanges {
  int lo[kUnitRows], hi[kUnitRows];  ///< of every row
  int all_lo, all_hi;                ///< keys that some row sees
  int full_lo, full_hi;              ///< keys that every row sees
};

__device__ inline void fill_ranges(const DecodeArgs& a, const DecodeUnit& unit, UnitRanges& shared) {
  if (threadIdx.x < 32) {
    const bool real = static_cast<int>(threadIdx.x) < unit.rows;
    const int2 span = real ? decode_span(a, unit.b, unit.token(a, threadIdx.x)) : int2{0, 0};
    const bool sees = span.x < span.y;
    const int big = 0x7fffffff;
    const int all_lo = __reduce_min_sync(0xffffffffu, sees ? span.x : big);
    const int all_hi = __reduce_max_sync(0xffffffffu, sees ? span.y : 0);
    const int full_lo = __reduce_max_sync(0xffffffffu, real ? span.x : 0);
    const int full_hi = __reduce_min_sync(0xffffffffu, real ? span.y : big);
    if (threadIdx.x < kUnitRows) {
      shared.lo[threadIdx.x] = span.x;
      shared.hi[threadIdx.x] = span.y;
    }
    if (threadIdx.x == 0) {
      shared.all_lo = min(all_lo, all_hi);
      shared.all_hi = all_hi;
      shared.full_lo = full_lo;
      shared.full_hi = full_hi;
    }
  }
}

/// Rows [t0, t0 + TOKENS) of a [*, features] tensor into shared rows of WIDTH bytes at a pitch of 16 more, which
/// spreads eight rows over all banks. Rows outside [lo, hi) and what lies behind the features become zero.
template <int TOKENS, int WIDTH>
struct RowLoader {
  static constexpr int kPitch = WIDTH + 16;
  static constexpr int kBytes = TOKENS * kPitch;
  static constexpr int kPieces = WIDTH / 16;
  static constexpr int kStep = 32 / kPieces;  // rows that the warp copies at a time
  static_assert(kPieces <= 32 && 32 % kPieces == 0 && TOKENS % kStep == 0);

  const char* base;
  std::int64_t pitch;  // bytes between tokens
  int bytes;           // of a row

  __device__ __forceinline__ RowLoader(const void* data, const Strides& s, int element, int b, int g, int features)
      : base(static_cast<const char*>(data) + element * (b * s.batch + g * s.head)),
        pitch(element * s.token),
        bytes(element * features) {}

  __device__ __forceinline__ void load(char* to, int t0, int lo, int hi) const {
    const int lane = threadIdx.x % 32, piece = lane % kPieces, row = lane / kPieces;
    const char* from = base + (t0 + row) * pitch + piece * 16;
    char* target = to + row * kPitch + piece * 16;
    if (t0 >= lo && t0 + TOKENS <= hi && bytes == WIDTH) {
#pragma unroll
      for (int j = 0; j < TOKENS / kStep; ++j) copy_async(target + j * kStep * kPitch, from + j * kStep * pitch);
    } else {
      const int there = min(max(bytes - piece * 16, 0), 16);
#pragma unroll
      for (int j = 0; j < TOKENS / kStep; ++j) {
        const int t = t0 + row + j * kStep;
        const bool valid = t >= lo && t < hi && there > 0;
        copy_async(target + j * kStep * kPitch, valid ? from + j * kStep * pitch : base, valid ? there : 0);
      }
    }
  }
};

/// Weights P^T of 16 keys x 8 rows, as the right operand of the product with V.
using Weights = std::uint32_t[2];

/// V in the cache: bf16, or int8 whose scale the weights carry. An operand holds 16 features of V as rows: bf16 in
/// their order (rows q, q + 8 of the product are features q, q + 8), int8 even features before odd ones (2q, 2q + 1),
/// as the pairs come out of the transposing load.
template <class C>
struct ValueTile {
  static constexpr int kElement = C::kInt8 ? 1 : 2;
  using Rows = RowLoader<C::kTokens, C::kDv * kElement>;
  /// Feature of element e of the d-th block of sums.
  static __device__ __forceinline__ int feature(int d, int e) {
    const int q = threadIdx.x % 32 / 4;
    return d * 16 + (C::kInt8 ? 2 * q + e / 2 : q + e / 2 * 8);
  }

  /// O^T += V^T P^T for the 16 keys whose rows of V start at `rows`.
  static __device__ __forceinline__ void add(float (&o)[C::kDv / 16][C::kColumns][4], const char* rows,
                                             const Weights (&weights)[C::kColumns]) {
    const int lane = threadIdx.x % 32;
    if constexpr (C::kInt8) {
      const char* at = rows + ((lane & 7) + (lane >> 3 & 1) * 8) * Rows::kPitch + (lane >> 4) * 16;
#pragma unroll
      for (int d = 0; d < C::kDv / 16; d += 2) {
        std::uint32_t bytes[4];  // keys 0..7 and 8..15 of 16 features, then of the next 16
        load_matrices_transposed(bytes, at + d * 16);
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const std::uint32_t v[4] = {even_bytes_bf16(bytes[2 * u]), odd_bytes_bf16(bytes[2 * u]),
                                      even_bytes_bf16(bytes[2 * u + 1]), odd_bytes_bf16(bytes[2 * u + 1])};
#pragma unroll
          for (int n = 0; n < C::kColumns; ++n) multiply_add(o[d + u][n], v, weights[n][0], weights[n][1]);
        }
      }
    } else {
      const char* at = rows + ((lane & 7) + (lane >> 4) * 8) * Rows::kPitch + (lane >> 3 & 1) * 16;
#pragma unroll
      for (int d = 0; d < C::kDv / 16; ++d) {
        std::uint32_t v[4];
        load_matrices_transposed(v, at + d * 32);
#pragma unroll
        for (int n = 0; n < C::kColumns; ++n) multiply_add(o[d][n], v, weights[n][0], weights[n][1]);
      }
    }
  }
};

/// What the blocks of an SM share; a block itself takes 1 KB of it.
inline constexpr int kSharedMemory = 228 * 1024;

/// Shared memory of a block: ranges, the warps' maxima and sums, the policy's, then per warp its private area, and the
/// warps' rings. `k` is the number of stored features of a sparse key.
template <class Scores>
struct DecodeLayout {
  using C = typename Scores::Config;
  using Values = typename ValueTile<C>::Rows;
  static constexpr int kScales = C::kInt8 ? C::kTokens * 2 : 0;
  static constexpr int kRanges = (static_cast<int>(sizeof(UnitRanges)) + 15) / 16 * 16;
  static constexpr int kStats = 2 * C::kWarps * kUnitRows * 4;
  static constexpr int kPrivate = kRanges + kStats + Scores::kSharedBytes;
  static constexpr int kRings = kPrivate + C::kWarps * Scores::kWarpBytes;
  static constexpr int kSumPitch = C::kDv + 4;  // floats
  static constexpr int kSums = C::kWarps * C::kColumns * 8 * kSumPitch * 4;

  /// A tile: keys, rows of V, their scales.
  static constexpr int stage(int k) { return Scores::tile_bytes(k) + Values::kBytes + kScales; }
  static constexpr int bytes(int k, int stages) {
    const int rings = C::kWarps * stages * stage(k);
    return kRings + (rings > kSums ? rings : kSums);
  }
  /// Stages of a ring: C::kStages, or what there is room for when sparse rows are long.
  static constexpr int stages(int k) {
    int n = C::kStages;
    while (n > 2 && bytes(k, n) > kSharedMemory / C::kBlocks - 1024) --n;
    return n;
  }
};

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
      for (int w = 0; w < C::kWarps; ++w) sum += factor[w] * sums[(w * C::kColumns * 8 + r) * kPitch + c];
      a.partial_out[(first + r) * Dv + c] = sum;
    }
    if (threadIdx.x % 32 == 0) a.partial_stats[first + r] = {top, total};
  }
}

/// The scales of a tile of 32 keys; keys beyond hi get 0.
__device__ __forceinline__ void load_scales(const DecodeArgs& a, const DecodeUnit& unit, char* to, int t0, int hi) {
  const int at = t0 + threadIdx.x % 32 * 8;
  if (threadIdx.x % 32 >= 4) return;
  const auto* from = static_cast<const __nv_bfloat16*>(a.p.v_scale) + unit.b * a.p.v_scale_stride.batch +
                     unit.g * a.p.v_scale_stride.head;
  const int there = min(max(hi - at, 0), 8);
  copy_async(to + threadIdx.x % 32 * 16, there > 0 ? from + at : from, 2 * there);
}

/// Until the oldest of `groups` groups of copies has arrived.
__device__ __forceinline__ void wait_for_oldest(int groups) {
  if (groups >= 3)
    copy_wait<2>();
  else if (groups == 2)
    copy_wait<1>();
  else
    copy_wait<0>();
}

template <class Scores>
__global__ void __launch_bounds__(Scores::Config::kWarps * 32, Scores::Config::kBlocks)
    decode_kernel(const __grid_constant__ DecodeArgs a) {
  using C = typename Scores::Config;
  using Layout = DecodeLayout<Scores>;
  using Values = typename Layout::Values;
  extern __shared__ __align__(16) char memory[];
  UnitRanges& ranges = *reinterpret_cast<UnitRanges*>(memory);
  float* maxima = reinterpret_cast<float*>(memory + Layout::kRanges);
  float* totals = maxima + C::kWarps * kUnitRows;
  char* shared = memory + Layout::kRanges + Layout::kStats;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  char* mine = memory + Layout::kPrivate + warp * Scores::kWarpBytes;
  const int key_bytes = Scores::tile_bytes(a.p.k_sparse.k), stage_bytes = Layout::stage(a.p.k_sparse.k);
  char* ring = memory + Layout::kRings + warp * a.stages * stage_bytes;

  const int part = blockIdx.x;
  const std::int64_t part_end = a.split.begin(part + 1);
  for (std::int64_t at = a.split.begin(part); at < part_end;) {
    const int index = static_cast<int>(at / a.split.tiles);
    const std::int64_t unit_begin = std::int64_t{index} * a.split.tiles;
    const int begin = static_cast<int>(at - unit_begin) + a.split.first_tile;
    at = min(part_end, unit_begin + a.split.tiles);
    const int end = static_cast<int>(at - unit_begin) + a.split.first_tile;
    const DecodeUnit unit(a, index);

    __syncthreads();  // the last unit's sums have been read
    fill_ranges(a, unit, ranges);
    Scores scores(a, unit, shared, mine);
    __syncthreads();
    scores.start(a, unit, ranges, shared);
    const Values values(a.p.v, a.p.v_stride, ValueTile<C>::kElement, unit.b, unit.g, a.p.shape.Dv);

    // Tile i of this warp is first + i * kWarps.
    const int lo = ranges.all_lo, hi = ranges.all_hi;
    const int seen_begin = max(begin, lo / C::kTokens), seen_end = min(end, (hi + C::kTokens - 1) / C::kTokens);
    const int first = seen_begin + warp;
    const int count = first < seen_end ? (seen_end - first + C::kWarps - 1) / C::kWarps : 0;
    int filled = 0;  // stage that is filled next
    const auto fetch = [&](int i) {
      if (i < count) {
        char* stage = ring + filled * stage_bytes;
        const int t0 = (first + i * C::kWarps) * C::kTokens;
        scores.load(stage, t0, lo, hi);
        values.load(stage + key_bytes, t0, lo, hi);
        if constexpr (C::kInt8) load_scales(a, unit, stage + key_bytes + Values::kBytes, t0, hi);
      }
      copy_commit();
      filled = filled + 1 == a.stages ? 0 : filled + 1;
    };
    float o[C::kDv / 16][C::kColumns][4] = {};
    for (int i = 0; i < a.stages - 1; ++i) fetch(i);
    for (int i = 0, read = 0; i < count; ++i) {
      wait_for_oldest(a.stages - 1);
      __syncwarp();  // all lanes' copies are there, and all lanes are done with the stage that is filled next
      fetch(i + a.stages - 1);
      const char* stage = ring + read * stage_bytes;
      const int t0 = (first + i * C::kWarps) * C::kTokens;
      Weights weights[C::kTokens / 16][C::kColumns];
      scores.weigh(stage, stage + key_bytes + Values::kBytes, t0, ranges, weights, o);
#pragma unroll
      for (int m = 0; m < C::kTokens / 16; ++m)
        ValueTile<C>::add(o, stage + key_bytes + m * 16 * Values::kPitch, weights[m]);
      read = read + 1 == a.stages ? 0 : read + 1;
    }
    copy_wait<0>();
    scores.finish(maxima + warp * kUnitRows, totals + warp * kUnitRows);
    __syncthreads();  // every ring is free
    float* sums = reinterpret_cast<float*>(memory + Layout::kRings) + warp * C::kColumns * 8 * Layout::kSumPitch;
#pragma unroll
    for (int d = 0; d < C::kDv / 16; ++d)
#pragma unroll
      for (int n = 0; n < C::kColumns; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          sums[(n * 8 + lane % 4 * 2 + e % 2) * Layout::kSumPitch + ValueTile<C>::feature(d, e)] = o[d][n][e];
    __syncthreads();
    store_partial<Scores>(a, unit, std::int64_t{part} + index, reinterpret_cast<const float*>(memory + Layout::kRings),
                          maxima, totals);
  }
}

/// Cuts the work into one part for every block that the card holds at a time, and launches. `args` comes with its
/// parameters alone.
template <class Scores>
cudaError_t launch_decode(DecodeArgs args, cudaStream_t stream) {
  using C = typename Scores::Config;
  using Layout = DecodeLayout<Scores>;
  static_assert(C::kStages >= 2 && C::kStages <= 4 && Layout::bytes(0, 2) < kSharedMemory);
  static thread_local Residency known;
  args.stages = Layout::stages(args.p.k_sparse.k);
  const int bytes = Layout::bytes(args.p.k_sparse.k, args.stages);
  cudaError_t status = known.find(reinterpret_cast<const void*>(decode_kernel<Scores>), C::kWarps * 32, bytes);
  if (status != cudaSuccess) return status;
  split_decode(args, C::kTokens, C::kWarps, known.blocks);
  if (args.split.tiles > 0) decode_kernel<Scores><<<args.split.parts, C::kWarps * 32, bytes, stream>>>(args);
  status = cudaGetLastError();
  return status != cudaSuccess ? status : decode_join(args, stream);
}

}  // namespace sfa::flash
