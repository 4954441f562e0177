// A warp takes a token: it computes the angles of the token's position once into shared memory (one or two a lane),
// then goes over the heads, several at a time. The pair (i, i + D/2) that a rotation mixes lies in one thread: a thread
// holds vectors at i and at i + D/2. So every element is read and written once, in 16 bytes where the shape allows.
// In the backward a thread meets the same features in every head, and keeps its share of the two weights' gradients in
// registers; blocks leave partial sums that a second kernel folds in order. The number of blocks is fixed, not the
// card's, so that the bits do not depend on the card.
#include <algorithm>
#include <bit>
#include <cmath>

#include "cuda/columns.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ops/qk_norm_rope/qk_norm_rope_cuda.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxHalf = 128;                  // pairs of a head: D up to 256
constexpr std::int64_t kForwardBlocks = 1056;  // eight for each of 132 multiprocessors
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

// The fractions of a turn that a lane's pairs make a position: pairs lane, lane + 32, ...
struct LaneTurns {
  double v[kMaxHalf / 32];
  __device__ LaneTurns(const Turns& turns, int half, int lane) {
#pragma unroll
    for (int i = 0; i < kMaxHalf / 32; ++i) v[i] = lane + i * 32 < half ? turns.per_position[lane + i * 32] : 0.0;
  }
};

// (cosine, sine) of every pair at a position, for the warp.
__device__ __forceinline__ void set_angles(float2* angles, const LaneTurns& turns, int half, std::int64_t position,
                                           int lane) {
  __syncwarp();  // the last position's readers are done
#pragma unroll
  for (int i = 0; i < kMaxHalf / 32; ++i) {
    if (lane + i * 32 >= half) break;
    const double turn = static_cast<double>(position) * turns.v[i];
    float2 angle;
    sincospif(2.0f * static_cast<float>(turn - rint(turn)), &angle.y, &angle.x);
    angles[lane + i * 32] = angle;
  }
  __syncwarp();
}

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

// Copies the v heads of a token; a warp together.
template <class T>
__device__ __forceinline__ void copy_rest(const T* from, T* to, int begin, int end, bool wide, int lane) {
  if (wide) {
    for (int c = begin + lane * 8; c < end; c += 256)
      *reinterpret_cast<Vector<T, 8>*>(to + c) = *reinterpret_cast<const Vector<T, 8>*>(from + c);
  } else {
    for (int c = begin + lane; c < end; c += 32) to[c] = from[c];
  }
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
__global__ void __launch_bounds__(kThreads, 4)
    forward_kernel(const ForwardPointers<T> p, const Shape s, const __grid_constant__ Turns turns) {
  __shared__ float2 all_angles[kWarps][kMaxHalf];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  float2* angles = all_angles[warp];
  const LaneTurns lane_turns(turns, s.half, lane);
  const int heads = s.H + s.G, D = 2 * s.half;
  const std::int64_t step = std::int64_t{gridDim.x} * kWarps;
  for (std::int64_t n = std::int64_t{blockIdx.x} * kWarps + warp; n < s.N; n += step) {
    set_angles(angles, lane_turns, s.half, position_of(s, n), lane);
    const T* from = p.x + n * s.row;
    T* to = p.y + n * s.out_row;
#pragma unroll 2
    for (int h0 = 0; h0 < heads; h0 += S::HEADS) {
      const int h = h0 + lane / S::LANES;
      Part<T, S> x;
      x.read(from + h * D, s.half, h < heads);
      float squares = 0;
#pragma unroll
      for (int i = 0; i < S::PER; ++i)
#pragma unroll
        for (int j = 0; j < S::WIDTH; ++j) {
          const float a = to_float(x.low[i].v[j]), b = to_float(x.high[i].v[j]);
          squares += a * a + b * b;
        }
      const float rstd = 1.0f / sqrtf(warp_sum<S::LANES>(squares) / static_cast<float>(D) + p.eps);
      if (h >= heads) continue;
      if (p.rstd != nullptr && lane % S::LANES == 0) p.rstd[n * heads + h] = rstd;
      const T* weight = h < s.H ? p.q_weight : p.k_weight;
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
        store(to + h * D + c, low);
        store(to + h * D + s.half + c, high);
      }
    }
    if (p.copy) copy_rest(from, to, heads * D, s.out_row, p.wide, lane);
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

// HEADS heads of one token, of one kind; `first` is where the kind's heads begin in a row.
template <class T, class S>
__device__ __forceinline__ void heads_backward(const BackwardPointers<T>& p, const Shape& s, const float2* angles,
                                               const T* weight, std::int64_t n, int first, int count, int lane,
                                               WeightSums<S>& sums) {
  const int D = 2 * s.half;
#pragma unroll 1
  for (int h0 = 0; h0 < count; h0 += S::HEADS) {
    const bool live = h0 + lane / S::LANES < count;
    const int h = first + h0 + lane / S::LANES;
    const std::int64_t at = n * s.row + h * D;
    Part<T, S> x, d_y;
    x.read(p.x + at, s.half, live);
    d_y.read(p.d_y + at, s.half, live);
    const float rstd = live ? p.rstd[n * (s.H + s.G) + h] : 0.0f;
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
        const float a = to_float(d_y.low[i].v[j]), b = to_float(d_y.high[i].v[j]);
        const float z_low = a * angle.x + b * angle.y, z_high = b * angle.x - a * angle.y;
        const float x_low = to_float(x.low[i].v[j]) * rstd, x_high = to_float(x.high[i].v[j]) * rstd;
        sums.low[i][j] += z_low * x_low;
        sums.high[i][j] += z_high * x_high;
        g_low[i][j] *= z_low;
        g_high[i][j] *= z_high;
        dot += g_low[i][j] * x_low + g_high[i][j] * x_high;
      }
    }
    dot = warp_sum<S::LANES>(dot) / static_cast<float>(D);
    if (!live) continue;
#pragma unroll
    for (int i = 0; i < S::PER; ++i) {
      const int c = S::pair(i);
      if (c >= s.half) continue;
#pragma unroll
      for (int j = 0; j < S::WIDTH; ++j) {
        g_low[i][j] = (g_low[i][j] - to_float(x.low[i].v[j]) * rstd * dot) * rstd;
        g_high[i][j] = (g_high[i][j] - to_float(x.high[i].v[j]) * rstd * dot) * rstd;
      }
      store(p.d_x + at + c, g_low[i]);
      store(p.d_x + at + s.half + c, g_high[i]);
    }
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
  __shared__ float2 all_angles[kWarps][kMaxHalf];
  __shared__ float folded[2 * kMaxHalf];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  float2* angles = all_angles[warp];
  const LaneTurns lane_turns(turns, s.half, lane);
  WeightSums<S> q_sums, k_sums;
  const std::int64_t step = std::int64_t{gridDim.x} * kWarps;
  for (std::int64_t n = std::int64_t{blockIdx.x} * kWarps + warp; n < s.N; n += step) {
    set_angles(angles, lane_turns, s.half, position_of(s, n), lane);
    heads_backward<T, S>(p, s, angles, p.q_weight, n, 0, s.H, lane, q_sums);
    heads_backward<T, S>(p, s, angles, p.k_weight, n, s.H, s.G, lane, k_sums);
    if (p.copy) copy_rest(p.d_y + n * s.row, p.d_x + n * s.row, (s.H + s.G) * 2 * s.half, s.row, p.wide, lane);
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
  const auto blocks = static_cast<unsigned>(std::min(kForwardBlocks, ceil_div(s.N, kWarps)));
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
  const std::int64_t blocks = std::min(kBackwardBlocks, ceil_div(s.N, kWarps)), D = args.D;
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
