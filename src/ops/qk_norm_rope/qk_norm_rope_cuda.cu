// A block takes four neighbouring tokens at a time: rows that lie side by side are read at about the same time, which
// DRAM needs (a warp a token, walking along its row, reached a third of the speed of a copy). The angles of the four
// positions are computed once for all heads, into shared memory. Then warps take several heads of one token each: the
// pair (i, i + D/2) that a rotation mixes lies in one thread, which holds vectors at i and at i + D/2, of 16 bytes
// where the shape allows. In the backward a thread meets the same features in every head, and keeps its share of the
// two weights' gradients in registers; blocks leave partial sums that a second kernel folds in order. The number of
// blocks is fixed, not the card's, so that the bits do not depend on the card.
#include <algorithm>
#include <bit>

#include "cuda/columns.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/registers.cuh"
#include "cuda/vector.cuh"
#include "ops/qk_norm_rope/norm_rotation.cuh"
#include "ops/qk_norm_rope/qk_norm_rope_cuda.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = 4;                       // tokens of a block at a time
constexpr std::int64_t kForwardBlocks = 528;   // four for each of 132 multiprocessors
constexpr std::int64_t kBackwardBlocks = 396;  // three

struct Shape {
  std::int64_t N, T, first_position;
  int H, G, half, row, out_row;  // row: elements of a row of x; out_row: of y
  float per_feature;             // 1/D
};

__device__ __forceinline__ std::int64_t position_of(const Shape& s, std::int64_t n) {
  return s.first_position + static_cast<unsigned>(n) % static_cast<unsigned>(s.T);
}

// How the threads of a warp share heads: LANES threads a head, each with PER vectors of WIDTH pairs; vector i of a
// thread starts at pair (i * LANES + thread) * WIDTH.
template <int WIDTH_, int LANES_, int PER_>
struct Share {
  static constexpr int WIDTH = WIDTH_, LANES = LANES_, PER = PER_, HEADS = 32 / LANES_;
  __device__ static int pair(int i) { return (i * LANES + static_cast<int>(threadIdx.x) % LANES) * WIDTH; }
};

// (cosine, sine) of the pairs of a tile's tokens; two tiles in turns, so that one barrier a tile is enough.
struct Angles {
  double turns[kMaxHalf];
  __align__(16) float cosine[2][kTile][kMaxHalf];
  __align__(16) float sine[2][kTile][kMaxHalf];

  // A block together, as the other two.
  __device__ __forceinline__ void start(const Turns& all, int half) {
    for (int i = static_cast<int>(threadIdx.x); i < half; i += kThreads) turns[i] = all.per_position[i];
    __syncthreads();
  }
  __device__ __forceinline__ void set(const Shape& s, std::int64_t tile, int which) {
    for (int v = static_cast<int>(threadIdx.x); v < kTile * s.half; v += kThreads) {
      const int token = v / s.half, i = v - token * s.half;
      angle_at(static_cast<double>(position_of(s, tile * kTile + token)), turns[i], sine[which][token][i],
               cosine[which][token][i]);
    }
    __syncthreads();
  }
};

// What a warp works on at a time: HEADS heads, all of queries or all of keys, of one token. Those of a tile are
// numbered in the order of memory, and warps take every kWarps-th.
template <class S>
struct Unit {
  std::int64_t tile;
  int number;     // within the tile
  int token = 0;  // within the tile
  int head = 0;   // of this thread
  bool queries = true, live = false;

  __device__ __forceinline__ static int of_queries(const Shape& s) { return (s.H + S::HEADS - 1) / S::HEADS; }
  __device__ __forceinline__ static int of_token(const Shape& s) {
    return of_queries(s) + (s.G + S::HEADS - 1) / S::HEADS;
  }
  __device__ __forceinline__ Unit(const Shape& s, std::int64_t tile_, int number_) : tile(tile_), number(number_) {
    const int each = of_token(s), part_of = of_queries(s);
    token = number / each;
    const int part = number - token * each, within = static_cast<int>(threadIdx.x) % 32 / S::LANES;
    queries = part < part_of;
    head = queries ? part * S::HEADS + within : s.H + (part - part_of) * S::HEADS + within;
    live = token < kTile && n() < s.N && head < (queries ? s.H : s.H + s.G);
  }
  [[nodiscard]] __device__ __forceinline__ std::int64_t n() const { return tile * kTile + token; }
};

// What a thread holds of one head: pairs' low halves and high halves, as stored.
template <class T, class S>
struct Part {
  Vector<T, S::WIDTH> low[S::PER], high[S::PER];
  __device__ __forceinline__ void read(const T* head, int half, bool live) {
#pragma unroll
    for (int i = 0; i < S::PER; ++i) {
      const bool inside = live && S::pair(i) < half;
      low[i] = inside ? *reinterpret_cast<const Vector<T, S::WIDTH>*>(head + S::pair(i)) : Vector<T, S::WIDTH>{};
      high[i] =
          inside ? *reinterpret_cast<const Vector<T, S::WIDTH>*>(head + half + S::pair(i)) : Vector<T, S::WIDTH>{};
    }
  }
};

// Copies columns [begin, end) of a tile's rows; a block together.
template <class T, int WIDTH>
__device__ __forceinline__ void copy_columns(const T* from, int row, T* to, int to_row, int tokens, int begin,
                                             int end) {
  const int vectors = (end - begin) / WIDTH;
  for (int v = static_cast<int>(threadIdx.x); v < tokens * vectors; v += kThreads) {
    const int token = v / vectors, c = begin + (v - token * vectors) * WIDTH;
    *reinterpret_cast<Vector<T, WIDTH>*>(to + token * to_row + c) =
        *reinterpret_cast<const Vector<T, WIDTH>*>(from + token * row + c);
  }
}

// The v heads of a tile, where they are wanted.
template <class T>
__device__ __forceinline__ void copy_values(const Shape& s, std::int64_t tile, const T* from, T* to, bool wide) {
  const int begin = (s.H + s.G) * 2 * s.half, tokens = static_cast<int>(min(s.N - tile * kTile, std::int64_t{kTile}));
  from += tile * kTile * s.row;
  to += tile * kTile * s.out_row;
  if (wide)
    copy_columns<T, 8>(from, s.row, to, s.out_row, tokens, begin, s.out_row);
  else
    copy_columns<T, 1>(from, s.row, to, s.out_row, tokens, begin, s.out_row);
}

template <class T>
struct ForwardPointers {
  const T *x, *q_weight, *k_weight;
  T* y;
  float* rstd;  // or null
  float eps;
  bool copy, wide;  // v heads are copied, in vectors of eight
};

template <class T, class S>
__device__ __forceinline__ void heads_forward(const ForwardPointers<T>& p, const Shape& s, const float* cosines,
                                              const float* sines, const Unit<S>& unit) {
  const int D = 2 * s.half;
  Part<T, S> x;
  x.read(p.x + unit.n() * s.row + unit.head * D, s.half, unit.live);
  float squares = 0;
#pragma unroll
  for (int i = 0; i < S::PER; ++i)
#pragma unroll
    for (int j = 0; j < S::WIDTH; ++j)
      squares = add_squares(squares, to_float(x.low[i].v[j]), to_float(x.high[i].v[j]));
  const float rstd = rstd_of<S::LANES>(squares, s.per_feature, p.eps);
  if (!unit.live) return;
  if (p.rstd != nullptr && threadIdx.x % S::LANES == 0) p.rstd[unit.n() * (s.H + s.G) + unit.head] = rstd;
  const T* weight = unit.queries ? p.q_weight : p.k_weight;
  T* to = p.y + unit.n() * s.out_row + unit.head * D;
#pragma unroll
  for (int i = 0; i < S::PER; ++i) {
    const int c = S::pair(i);
    if (c >= s.half) continue;
    float low[S::WIDTH], high[S::WIDTH], low_weight[S::WIDTH], high_weight[S::WIDTH];
    load(low_weight, weight + c);
    load(high_weight, weight + s.half + c);
    float cosine[S::WIDTH], sine[S::WIDTH];
    load(cosine, cosines + c);
    load(sine, sines + c);
#pragma unroll
    for (int j = 0; j < S::WIDTH; ++j) {
      low[j] = to_float(x.low[i].v[j]);
      high[j] = to_float(x.high[i].v[j]);
      norm_and_rotate(low[j], high[j], rstd, low_weight[j], high_weight[j], cosine[j], sine[j]);
    }
    store(to + c, low);
    store(to + s.half + c, high);
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kThreads, 4)
    forward_kernel(const ForwardPointers<T> p, const Shape s, const __grid_constant__ Turns turns) {
  __shared__ Angles angles;
  angles.start(turns, s.half);
  const int units = kTile * Unit<S>::of_token(s);
  int which = 0;
  for (std::int64_t tile = blockIdx.x; tile * kTile < s.N; tile += gridDim.x, which ^= 1) {
    angles.set(s, tile, which);
#pragma unroll 2
    for (int u = static_cast<int>(threadIdx.x) / 32; u < units; u += kWarps) {
      const Unit<S> unit(s, tile, u);
      heads_forward<T, S>(p, s, angles.cosine[which][unit.token], angles.sine[which][unit.token], unit);
    }
    if (p.copy) copy_values(s, tile, p.x, p.y, p.wide);
  }
}

template <class T>
struct BackwardPointers {
  const T *d_y, *x, *q_weight, *k_weight;
  const float* rstd;
  T* d_x;           // may be d_y
  float* partials;  // [blocks][D]
  int query_blocks;
  bool copy, wide;
};

template <class S>
struct WeightSums {
  float low[S::PER][S::WIDTH] = {}, high[S::PER][S::WIDTH] = {};
};

// One head's share of a thread: `at` is where the head begins in x, d_y and d_x.
template <class T, class S>
__device__ __forceinline__ void head_backward(const BackwardPointers<T>& p, const Shape& s, const Angles& angles,
                                              int which, int token, const T* weight, std::int64_t at, float rstd,
                                              bool live, WeightSums<S>& sums) {
  Part<T, S> x, d_y;
  x.read(p.x + at, s.half, live);
  d_y.read(p.d_y + at, s.half, live);
  float g_low[S::PER][S::WIDTH], g_high[S::PER][S::WIDTH], dot = 0;  // gradients of x * rstd
#pragma unroll
  for (int i = 0; i < S::PER; ++i) {
    const int c = S::pair(i);
    if (c >= s.half) continue;
    const auto w_low = *reinterpret_cast<const Vector<T, S::WIDTH>*>(weight + c),
               w_high = *reinterpret_cast<const Vector<T, S::WIDTH>*>(weight + s.half + c);
    constexpr int kSome = S::WIDTH < 4 ? S::WIDTH : 4;  // angles in registers at a time
#pragma unroll
    for (int j0 = 0; j0 < S::WIDTH; j0 += kSome) {
      keep_packed(x);
      keep_packed(d_y);
      float cosine[kSome], sine[kSome];
      load(cosine, angles.cosine[which][token] + c + j0);
      load(sine, angles.sine[which][token] + c + j0);
#pragma unroll
      for (int j = j0; j < j0 + kSome; ++j) {
        const float a = to_float(d_y.low[i].v[j]), b = to_float(d_y.high[i].v[j]);
        const float z_low = a * cosine[j - j0] + b * sine[j - j0], z_high = b * cosine[j - j0] - a * sine[j - j0];
        const float x_low = to_float(x.low[i].v[j]) * rstd, x_high = to_float(x.high[i].v[j]) * rstd;
        sums.low[i][j] += z_low * x_low;
        sums.high[i][j] += z_high * x_high;
        g_low[i][j] = to_float(w_low.v[j]) * z_low;
        g_high[i][j] = to_float(w_high.v[j]) * z_high;
        dot += g_low[i][j] * x_low + g_high[i][j] * x_high;
      }
    }
  }
  dot = warp_sum<S::LANES>(dot) * s.per_feature * rstd;
  if (!live) return;
  keep_packed(x);
#pragma unroll
  for (int i = 0; i < S::PER; ++i) {
    const int c = S::pair(i);
    if (c >= s.half) continue;
#pragma unroll
    for (int j = 0; j < S::WIDTH; ++j) {
      g_low[i][j] = (g_low[i][j] - to_float(x.low[i].v[j]) * dot) * rstd;
      g_high[i][j] = (g_high[i][j] - to_float(x.high[i].v[j]) * dot) * rstd;
    }
    store(p.d_x + at + c, g_low[i]);
    store(p.d_x + at + s.half + c, g_high[i]);
  }
}

// The block's sums of one weight's gradient into out [D]: over the heads of a warp by shuffles, then over the warps one
// after another.
template <class S>
__device__ void fold_block(const WeightSums<S>& sums, float* shared, float* out, int half, int warp, int lane) {
  for (int turn = 0; turn < kWarps; ++turn) {
#pragma unroll
    for (int i = 0; i < S::PER; ++i)
#pragma unroll
      for (int j = 0; j < S::WIDTH; ++j) {
        float low = sums.low[i][j], high = sums.high[i][j];
#pragma unroll
        for (int other = 16; other >= S::LANES; other /= 2) {
          low += __shfl_xor_sync(kAllLanes, low, other);
          high += __shfl_xor_sync(kAllLanes, high, other);
        }
        const int c = S::pair(i) + j;
        if (warp != turn || lane >= S::LANES || c >= half) continue;
        shared[c] = turn == 0 ? low : shared[c] + low;
        shared[half + c] = turn == 0 ? high : shared[half + c] + high;
      }
    __syncthreads();
  }
  for (int c = static_cast<int>(threadIdx.x); c < 2 * half; c += kThreads) out[c] = shared[c];
}

// The first query_blocks blocks take the query heads, the others the key heads (and copy the v heads, where wanted): a
// thread then has one weight's sums to keep.
template <class T, class S>
__global__ void __launch_bounds__(kThreads, 3)
    backward_kernel(const BackwardPointers<T> p, const Shape s, const __grid_constant__ Turns turns) {
  __shared__ Angles angles;
  __shared__ float folded[2 * kMaxHalf];
  angles.start(turns, s.half);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const bool queries = static_cast<int>(blockIdx.x) < p.query_blocks;
  const int heads = queries ? s.H : s.G, first_head = queries ? 0 : s.H, parts = (heads + S::HEADS - 1) / S::HEADS;
  const T* weight = queries ? p.q_weight : p.k_weight;
  const int step = queries ? p.query_blocks : static_cast<int>(gridDim.x) - p.query_blocks;
  WeightSums<S> sums;
  int which = 0;
  for (std::int64_t tile = queries ? blockIdx.x : blockIdx.x - p.query_blocks; tile * kTile < s.N;
       tile += step, which ^= 1) {
    angles.set(s, tile, which);
#pragma unroll 1
    for (int u = warp; u < kTile * parts; u += kWarps) {
      const int token = u / parts, head = (u - token * parts) * S::HEADS + lane / S::LANES;
      const std::int64_t n = tile * kTile + token;
      const bool live = n < s.N && head < heads;
      const float rstd = live ? p.rstd[n * (s.H + s.G) + first_head + head] : 0.0f;
      head_backward<T, S>(p, s, angles, which, token, weight, n * s.row + (first_head + head) * 2 * s.half, rstd, live,
                          sums);
    }
    if (p.copy && !queries) copy_values(s, tile, p.d_y, p.d_x, p.wide);
  }
  fold_block(sums, folded, p.partials + std::int64_t{blockIdx.x} * 2 * s.half, s.half, warp, lane);
}

// Calls f(Share) with how a warp shares heads of `half` pairs of T: vectors of 16 bytes where they fit.
template <class T, class F>
void for_share(int half, bool vectors, F&& f) {
  constexpr int kWidth = 16 / sizeof(T);
  if (vectors && half % kWidth == 0) {
    if (half <= 4 * kWidth) return f(Share<kWidth, 4, 1>{});
    if (half <= 8 * kWidth) return f(Share<kWidth, 8, 1>{});
    if (half <= 16 * kWidth) return f(Share<kWidth, 16, 1>{});
    return f(Share<kWidth, 32, 1>{});
  }
  if (half <= 32) return f(Share<1, 32, 1>{});
  f(Share<1, 32, kMaxHalf / 32>{});
}

// Is everything aligned for vectors of 16 bytes, rows and heads included?
template <class T, class... Pointers>
bool aligned(const Shape& s, const Pointers*... pointers) {
  constexpr int kWidth = 16 / sizeof(T);
  return s.row % kWidth == 0 && s.out_row % kWidth == 0 &&
         (((reinterpret_cast<std::uintptr_t>(pointers) & 15u) == 0) && ...);
}

Shape shape_of(const Tensor& x, const Tensor& y, std::int64_t H, std::int64_t G, std::int64_t D,
               std::int64_t first_position) {
  require(D / 2 <= kMaxHalf, "a head dimension of {} is not supported on a GPU by QK-norm and RoPE; the largest is {}",
          D, 2 * kMaxHalf);
  require(x.dim(0) * x.dim(1) < (std::int64_t{1} << 31), "internal error: QK-norm and RoPE of {}", x);
  return {.N = x.dim(0) * x.dim(1),
          .T = x.dim(1),
          .first_position = first_position,
          .H = static_cast<int>(H),
          .G = static_cast<int>(G),
          .half = static_cast<int>(D / 2),
          .row = static_cast<int>(x.dim(2)),
          .out_row = static_cast<int>(y.dim(2)),
          .per_feature = 1.0f / static_cast<float>(D)};
}

}  // namespace

void qk_norm_rope_forward(Context& ctx, const QkNormRope& args) {
  CudaState& state = ctx.cuda();
  const Shape s = shape_of(args.x, args.y, args.H, args.G, args.D, args.first_position);
  const Turns turns = turns_of(args.D, args.theta);
  const auto blocks = static_cast<unsigned>(std::min(kForwardBlocks, ceil_div(s.N, kTile)));
  for_float_type(args.x.dtype, "qk_norm_rope_forward", [&]<class T>() {
    ForwardPointers<T> p{.x = data_of<const T>(args.x),
                         .q_weight = data_of<const T>(args.q_weight),
                         .k_weight = data_of<const T>(args.k_weight),
                         .y = data_of<T>(args.y),
                         .rstd = data_of<float>(args.rstd),
                         .eps = args.eps,
                         .copy = args.x.data != args.y.data,
                         .wide = false};
    const bool vectors = aligned<T>(s, p.x, p.q_weight, p.k_weight, p.y);
    p.wide = vectors && s.row % 8 == 0 && s.out_row % 8 == 0 && (s.H + s.G) * s.half % 4 == 0;
    for_share<T>(s.half, vectors,
                 [&]<class S>(S) { forward_kernel<T, S><<<blocks, kThreads, 0, state.stream>>>(p, s, turns); });
  });
  SFA_LAUNCH_CHECK();
}

void qk_norm_rope_backward(Context& ctx, const QkNormRopeBackward& args) {
  const Shape s = shape_of(args.x, args.d_x, args.H, args.G, args.D, args.first_position);
  // Blocks of either kind in the proportion of their work.
  const std::int64_t D = args.D, tiles = ceil_div(s.N, kTile),
                     query_share =
                         std::clamp<std::int64_t>(kBackwardBlocks * args.H / (args.H + args.G), 1, kBackwardBlocks - 1),
                     query_blocks = std::min(query_share, tiles),
                     key_blocks = std::min(kBackwardBlocks - query_share, tiles);
  ArenaScope scope(args.scratch);
  const Tensor partials = args.scratch.take(DType::f32, {query_blocks + key_blocks, D});
  if (ctx.planning) return;
  CudaState& state = ctx.cuda();
  const Turns turns = turns_of(D, args.theta);
  for_float_type(args.x.dtype, "qk_norm_rope_backward", [&]<class T>() {
    BackwardPointers<T> p{.d_y = data_of<const T>(args.d_y),
                          .x = data_of<const T>(args.x),
                          .q_weight = data_of<const T>(args.q_weight),
                          .k_weight = data_of<const T>(args.k_weight),
                          .rstd = data_of<const float>(args.rstd),
                          .d_x = data_of<T>(args.d_x),
                          .partials = data_of<float>(partials),
                          .query_blocks = static_cast<int>(query_blocks),
                          .copy = args.d_x.data != args.d_y.data,
                          .wide = false};
    const bool vectors = aligned<T>(s, p.d_y, p.x, p.q_weight, p.k_weight, p.d_x);
    p.wide = vectors && s.row % 8 == 0 && (s.H + s.G) * s.half % 4 == 0;
    for_share<T>(s.half, vectors, [&]<class S>(S) {
      backward_kernel<T, S>
          <<<static_cast<unsigned>(query_blocks + key_blocks), kThreads, 0, state.stream>>>(p, s, turns);
    });
  });
  SFA_LAUNCH_CHECK();
  const auto* sums = data_of<const float>(partials);
  fold_partials(state, sums, static_cast<int>(query_blocks), D, args.d_q_weight, D);
  fold_partials(state, sums + query_blocks * D, static_cast<int>(key_blocks), D, args.d_k_weight, D);
}

}  // namespace sfa::cuda_ops
