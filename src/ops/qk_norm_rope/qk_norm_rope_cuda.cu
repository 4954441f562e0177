// A block takes four neighbouring tokens at a time: rows that lie side by side are read at about the same time, which
// DRAM needs (a warp a token, walking along its row, reached a third of the speed of a copy). The angles of the four
// positions are computed once for all heads, into shared memory. Then warps take several heads of one token each: the
// pair (i, i + D/2) that a rotation mixes lies in one thread, which holds vectors at i and at i + D/2, of 16 bytes
// where the shape allows. In the backward a thread meets the same features in every head, and keeps its share of the
// two weights' gradients in registers; blocks leave partial sums that a second kernel folds in order. The number of
// blocks is fixed, not the card's, so that the bits do not depend on the card.
#include <algorithm>
#include <bit>
#include <cmath>

#include "cuda/columns.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/registers.cuh"
#include "cuda/vector.cuh"
#include "ops/qk_norm_rope/qk_norm_rope_cuda.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxHalf = 128;                  // pairs of a head: D up to 256
constexpr int kTile = 4;                       // tokens of a block at a time
constexpr std::int64_t kForwardBlocks = 528;   // four for each of 132 multiprocessors
constexpr std::int64_t kBackwardBlocks = 264;  // two

// Turns of the pairs from one position to the next, f_i / (2 pi).
struct Turns {
  double per_position[kMaxHalf];
};

Turns turns_of(std::int64_t D, double theta) {
  Turns turns{};
  const std::vector<double> radians = rope_frequencies(D, theta);
  for (std::size_t i = 0; i < radians.size(); ++i) turns.per_position[i] = radians[i] / (2 * 3.14159265358979323846);
  return turns;
}

struct Shape {
  std::int64_t N, T, first_position;
  int H, G, half, row, out_row;  // row: elements of a row of x; out_row: of y
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
  float2 at[2][kTile][kMaxHalf];

  // A block together, as the other two.
  __device__ __forceinline__ void start(const Turns& all, int half) {
    for (int i = static_cast<int>(threadIdx.x); i < half; i += kThreads) turns[i] = all.per_position[i];
    __syncthreads();
  }
  __device__ __forceinline__ void set(const Shape& s, std::int64_t tile, int which) {
    for (int v = static_cast<int>(threadIdx.x); v < kTile * s.half; v += kThreads) {
      const int token = v / s.half, i = v - token * s.half;
      const double turn = static_cast<double>(position_of(s, tile * kTile + token)) * turns[i];
      float2 angle;
      sincospif(2.0f * static_cast<float>(turn - rint(turn)), &angle.y, &angle.x);
      at[which][token][i] = angle;
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
__device__ __forceinline__ void heads_forward(const ForwardPointers<T>& p, const Shape& s, const float2* angles,
                                              const Unit<S>& unit) {
  const int D = 2 * s.half;
  Part<T, S> x;
  x.read(p.x + unit.n() * s.row + unit.head * D, s.half, unit.live);
  float squares = 0;
#pragma unroll
  for (int i = 0; i < S::PER; ++i)
#pragma unroll
    for (int j = 0; j < S::WIDTH; ++j) {
      const float a = to_float(x.low[i].v[j]), b = to_float(x.high[i].v[j]);
      squares += a * a + b * b;
    }
  const float rstd = 1.0f / sqrtf(warp_sum<S::LANES>(squares) / static_cast<float>(D) + p.eps);
  if (!unit.live) return;
  if (p.rstd != nullptr && threadIdx.x % S::LANES == 0) p.rstd[unit.n() * (s.H + s.G) + unit.head] = rstd;
  const T* weight = unit.queries ? p.q_weight : p.k_weight;
  T* to = p.y + unit.n() * s.out_row + unit.head * D;
#pragma unroll
  for (int i = 0; i < S::PER; ++i) {
    const int c = S::pair(i);
    if (c >= s.half) continue;
    float low[S::WIDTH], high[S::WIDTH];
    load(low, weight + c);
    load(high, weight + s.half + c);
#pragma unroll
    for (int j = 0; j < S::WIDTH; ++j) {
      const float a = to_float(x.low[i].v[j]) * rstd * low[j], b = to_float(x.high[i].v[j]) * rstd * high[j];
      const float2 at = angles[c + j];
      low[j] = a * at.x - b * at.y;
      high[j] = b * at.x + a * at.y;
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
      heads_forward<T, S>(p, s, angles.at[which][unit.token], unit);
    }
    if (p.copy) copy_values(s, tile, p.x, p.y, p.wide);
  }
}

template <class T>
struct BackwardPointers {
  const T *d_y, *x, *q_weight, *k_weight;
  const float* rstd;
  T* d_x;           // may be d_y
  float* partials;  // [blocks][2][D]: d_q_weight, d_k_weight
  bool copy, wide;
};

template <class S>
struct WeightSums {
  float low[S::PER][S::WIDTH] = {}, high[S::PER][S::WIDTH] = {};
};

// What a thread reads of one head.
template <class T, class S>
struct Operands {
  Part<T, S> x, d_y;
  float rstd;
  __device__ __forceinline__ void read(const BackwardPointers<T>& p, const Shape& s, const Unit<S>& unit) {
    const std::int64_t from = unit.n() * s.row + unit.head * 2 * s.half;
    x.read(p.x + from, s.half, unit.live);
    d_y.read(p.d_y + from, s.half, unit.live);
    rstd = unit.live ? p.rstd[unit.n() * (s.H + s.G) + unit.head] : 0.0f;
  }
};

template <class T, class S>
__device__ __forceinline__ void heads_backward(const BackwardPointers<T>& p, const Shape& s, const float2* angles,
                                               const T* weight, const Unit<S>& unit, Operands<T, S>& in,
                                               WeightSums<S>& sums) {
  const float rstd = in.rstd;
  float g_low[S::PER][S::WIDTH], g_high[S::PER][S::WIDTH], dot = 0;  // gradients of x * rstd
#pragma unroll
  for (int i = 0; i < S::PER; ++i) {
    const int c = S::pair(i);
    if (c >= s.half) continue;
    load(g_low[i], weight + c);
    load(g_high[i], weight + s.half + c);
#pragma unroll
    for (int j = 0; j < S::WIDTH; ++j) {
      const float2 angle = angles[c + j];
      const float a = to_float(in.d_y.low[i].v[j]), b = to_float(in.d_y.high[i].v[j]);
      const float z_low = a * angle.x + b * angle.y, z_high = b * angle.x - a * angle.y;
      const float x_low = to_float(in.x.low[i].v[j]) * rstd, x_high = to_float(in.x.high[i].v[j]) * rstd;
      sums.low[i][j] += z_low * x_low;
      sums.high[i][j] += z_high * x_high;
      g_low[i][j] *= z_low;
      g_high[i][j] *= z_high;
      dot += g_low[i][j] * x_low + g_high[i][j] * x_high;
    }
  }
  dot = warp_sum<S::LANES>(dot) / static_cast<float>(2 * s.half);
  if (!unit.live) return;
  keep_packed(in.x);
  T* to = p.d_x + unit.n() * s.row + unit.head * 2 * s.half;
#pragma unroll
  for (int i = 0; i < S::PER; ++i) {
    const int c = S::pair(i);
    if (c >= s.half) continue;
#pragma unroll
    for (int j = 0; j < S::WIDTH; ++j) {
      g_low[i][j] = (g_low[i][j] - to_float(in.x.low[i].v[j]) * rstd * dot) * rstd;
      g_high[i][j] = (g_high[i][j] - to_float(in.x.high[i].v[j]) * rstd * dot) * rstd;
    }
    store(to + c, g_low[i]);
    store(to + s.half + c, g_high[i]);
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
  __syncthreads();
}

template <class T, class S>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(const BackwardPointers<T> p, const Shape s, const __grid_constant__ Turns turns) {
  __shared__ Angles angles;
  __shared__ float folded[2 * kMaxHalf];
  angles.start(turns, s.half);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int units = kTile * Unit<S>::of_token(s);
  WeightSums<S> q_sums, k_sums;
  int which = 0;
  Operands<T, S> next;
  next.read(p, s, Unit<S>(s, blockIdx.x, warp));
  for (std::int64_t tile = blockIdx.x; tile * kTile < s.N; tile += gridDim.x, which ^= 1) {
    angles.set(s, tile, which);
    // The next heads, of this tile or the next, are on their way while these are worked on. (Also in place: nobody else
    // writes them.)
    for (int u = warp; u < units; u += kWarps) {
      const Unit<S> unit(s, tile, u);
      Operands<T, S> now = next;
      const bool last = u + kWarps >= units;
      next.read(p, s, last ? Unit<S>(s, tile + gridDim.x, warp) : Unit<S>(s, tile, u + kWarps));
      const float2* at = angles.at[which][unit.token];
      if (unit.queries)
        heads_backward<T, S>(p, s, at, p.q_weight, unit, now, q_sums);
      else
        heads_backward<T, S>(p, s, at, p.k_weight, unit, now, k_sums);
    }
    if (p.copy) copy_values(s, tile, p.d_y, p.d_x, p.wide);
  }
  float* out = p.partials + std::int64_t{blockIdx.x} * 4 * s.half;
  fold_block(q_sums, folded, out, s.half, warp, lane);
  fold_block(k_sums, folded, out + 2 * s.half, s.half, warp, lane);
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
          .out_row = static_cast<int>(y.dim(2))};
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
  const std::int64_t blocks = std::min(kBackwardBlocks, ceil_div(s.N, kTile)), D = args.D;
  ArenaScope scope(args.scratch);
  const Tensor partials = args.scratch.take(DType::f32, {blocks, 2, D});
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
                          .copy = args.d_x.data != args.d_y.data,
                          .wide = false};
    const bool vectors = aligned<T>(s, p.d_y, p.x, p.q_weight, p.k_weight, p.d_x);
    p.wide = vectors && s.row % 8 == 0 && (s.H + s.G) * s.half % 4 == 0;
    for_share<T>(s.half, vectors, [&]<class S>(S) {
      backward_kernel<T, S><<<static_cast<unsigned>(blocks), kThreads, 0, state.stream>>>(p, s, turns);
    });
  });
  SFA_LAUNCH_CHECK();
  fold_partials(state, data_of<const float>(partials), static_cast<int>(blocks), 2 * D, args.d_q_weight, D);
  fold_partials(state, data_of<const float>(partials) + D, static_cast<int>(blocks), 2 * D, args.d_k_weight, D);
}

}  // namespace sfa::cuda_ops
