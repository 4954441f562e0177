// Tiles of queries by keys in shared memory as f32; one warp owns ROWS rows of a tile, a lane one column, so that every
// sum over a row's columns is a warp's and every sum over features a thread's. Three kernels: forward (rows = queries),
// d_q (rows = queries), and d_k with d_v (rows = keys, columns = queries). Nothing is shared between blocks: no
// atomics, the same bits every run.
#include <algorithm>
#include <cmath>

#include "attention/reference_cuda.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = 32;  // of a tile: one a lane
constexpr int kMaxFeatures = 256;
constexpr int kFeatureSteps = kMaxFeatures / 32;
constexpr int kMaskWords = kMaxFeatures / 32;

// [B, T, heads, features], features contiguous.
template <class T>
struct View {
  T* data;
  std::int64_t stride_b, stride_t, stride_h;
  __device__ __forceinline__ T* row(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return data + b * stride_b + t * stride_t + h * stride_h;
  }
};
template <class T>
View<T> view(const Tensor& t) {
  return {data_of<T>(t), t.stride[0], t.stride[1], t.stride[2]};
}

template <class T>
struct Problem {
  View<const T> q, k, v;
  View<const std::uint8_t> q_indices, k_indices;  // data null: every visible pair counts
  int k_q, k_k;                                   // indices a row
  int B, Tq, Tk, H, G, Dqk, Dv;
  float scale;
  bool causal;
  int query_offset, window;
  const std::int32_t* first_key;
  std::int64_t first_key_stride;
  float* lse;  // [B, H, Tq]
  std::int64_t lse_stride_b, lse_stride_h;

  [[nodiscard]] __device__ __forceinline__ bool masked() const { return q_indices.data != nullptr; }
  [[nodiscard]] __device__ __forceinline__ float* lse_at(int b, int h, int i) const {
    return lse + b * lse_stride_b + h * lse_stride_h + i;
  }
};

struct Span {
  int lo, hi;
};
template <class T>
__device__ __forceinline__ Span visible_keys(const Problem<T>& p, int b, int i) {
  if (i >= p.Tq) return {0, 0};
  const int position = i + p.query_offset;
  const int hi = p.causal ? min(max(position + 1, 0), p.Tk) : p.Tk;
  int lo = 0;
  if (p.window > 0) lo = max(lo, position + 1 - p.window);
  if (p.first_key != nullptr) lo = max(lo, p.first_key[b * p.first_key_stride + i]);
  return {lo, hi};
}

// to [count][D + 1] = rows first.. of head h as f32; zeros past `end`.
template <class T>
__device__ __forceinline__ void load_rows(float* to, const View<const T>& from, int b, int h, int first, int end,
                                          int count, int D) {
  for (int n = static_cast<int>(threadIdx.x); n < count * D; n += kThreads) {
    const int r = n / D, c = n % D;
    to[r * (D + 1) + c] = first + r < end ? to_float(from.row(b, first + r, h)[c]) : 0.0f;
  }
}

// to [count][kMaskWords] = the supports as bits; none past `end`.
__device__ __forceinline__ void load_masks(std::uint32_t* to, const View<const std::uint8_t>& from, int b, int h,
                                           int first, int end, int count, int k) {
  const int r = static_cast<int>(threadIdx.x);
  if (r >= count) return;
  std::uint32_t* mask = to + r * kMaskWords;
  for (int w = 0; w < kMaskWords; ++w) mask[w] = 0;
  if (first + r >= end) return;
  const std::uint8_t* own = from.row(b, first + r, h);
  for (int i = 0; i < k; ++i) mask[own[i] / 32] |= 1u << (own[i] % 32);
}

__device__ __forceinline__ bool overlap(const std::uint32_t* a, const std::uint32_t* b) {
  std::uint32_t common = 0;
#pragma unroll
  for (int w = 0; w < kMaskWords; ++w) common |= a[w] & b[w];
  return common != 0;
}

// out[i] = rows[i] . tile[lane]
template <int ROWS>
__device__ __forceinline__ void dot_rows(float (&out)[ROWS], const float* rows, const float* tile, int lane, int D) {
#pragma unroll
  for (int i = 0; i < ROWS; ++i) out[i] = 0;
  for (int d = 0; d < D; ++d) {
    const float x = tile[lane * (D + 1) + d];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) out[i] += rows[i * (D + 1) + d] * x;
  }
}

// acc[i][j] += sum over columns n of weights[i][n] * tile[n][lane + 32 j]
template <int ROWS>
__device__ __forceinline__ void add_weighted(float (&acc)[ROWS][kFeatureSteps], const float* weights, const float* tile,
                                             int lane, int D) {
  for (int n = 0; n < kColumns; ++n) {
    float w[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) w[i] = weights[i * (kColumns + 1) + n];
#pragma unroll
    for (int j = 0; j < kFeatureSteps; ++j) {
      if (lane + 32 * j >= D) break;
      const float x = tile[n * (D + 1) + lane + 32 * j];
#pragma unroll
      for (int i = 0; i < ROWS; ++i) acc[i][j] += w[i] * x;
    }
  }
}

template <class T, int ROWS>
__device__ __forceinline__ void store_rows(const View<T>& to, const float (&acc)[ROWS][kFeatureSteps],
                                           const float (&factor)[ROWS], int b, int h, int first, int end, int lane,
                                           int D) {
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    if (first + i >= end) continue;
#pragma unroll
    for (int j = 0; j < kFeatureSteps; ++j)
      if (lane + 32 * j < D) to.row(b, first + i, h)[lane + 32 * j] = from_float<T>(acc[i][j] * factor[i]);
  }
}

// Shared memory of a block, in floats: two row operands, a tile of columns, weights, supports.
struct Shared {
  float *first, *second, *tile, *weights;
  std::uint32_t *row_masks, *column_masks;
};
int shared_floats(int rows, int D_first, int D_second, int D_tile) {
  return rows * (D_first + 1) + rows * (D_second + 1) + kColumns * (D_tile + 1) + rows * (kColumns + 1) +
         (rows + kColumns) * kMaskWords;
}
__device__ __forceinline__ Shared carve(float* memory, int rows, int D_first, int D_second, int D_tile) {
  Shared s;
  s.first = memory;
  s.second = s.first + rows * (D_first + 1);
  s.tile = s.second + rows * (D_second + 1);
  s.weights = s.tile + kColumns * (D_tile + 1);
  s.row_masks = reinterpret_cast<std::uint32_t*>(s.weights + rows * (kColumns + 1));
  s.column_masks = s.row_masks + rows * kMaskWords;
  return s;
}

// The pair of query i and key n counts: n lies in the query's span and, with masks, their supports meet or n is the
// query's own position.
template <class T>
__device__ __forceinline__ bool counts(const Problem<T>& p, Span span, int i, int n, const std::uint32_t* a,
                                       const std::uint32_t* b) {
  if (n < span.lo || n >= span.hi) return false;
  return !p.masked() || n == i + p.query_offset || overlap(a, b);
}

template <class T, int ROWS>
__global__ void __launch_bounds__(kThreads) forward_kernel(const Problem<T> p, const View<T> out) {
  constexpr int kRows = kWarps * ROWS;
  extern __shared__ float memory[];
  const Shared s = carve(memory, kRows, p.Dqk, 0, max(p.Dqk, p.Dv));
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int b = static_cast<int>(blockIdx.z), h = static_cast<int>(blockIdx.y), g = h / (p.H / p.G);
  const int first = static_cast<int>(blockIdx.x) * kRows, own = first + warp * ROWS;
  load_rows(s.first, p.q, b, h, first, p.Tq, kRows, p.Dqk);
  if (p.masked()) load_masks(s.row_masks, p.q_indices, b, h, first, p.Tq, kRows, p.k_q);
  Span span[ROWS];
  float top[ROWS], total[ROWS], acc[ROWS][kFeatureSteps] = {};
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    span[i] = visible_keys(p, b, own + i);
    top[i] = -INFINITY;
    total[i] = 0;
  }
  const int begin = visible_keys(p, b, first).lo / kColumns * kColumns,
            end = visible_keys(p, b, min(first + kRows, p.Tq) - 1).hi;
  float* weights = s.weights + warp * ROWS * (kColumns + 1);
  for (int n0 = begin; n0 < end; n0 += kColumns) {
    __syncthreads();
    load_rows(s.tile, p.k, b, g, n0, p.Tk, kColumns, p.Dqk);
    if (p.masked()) load_masks(s.column_masks, p.k_indices, b, g, n0, p.Tk, kColumns, p.k_k);
    __syncthreads();
    float score[ROWS];
    dot_rows(score, s.first + warp * ROWS * (p.Dqk + 1), s.tile, lane, p.Dqk);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      const bool seen = counts(p, span[i], own + i, n0 + lane, s.row_masks + (warp * ROWS + i) * kMaskWords,
                               s.column_masks + lane * kMaskWords);
      const float x = seen ? score[i] * p.scale : -INFINITY;
      const float new_top = fmaxf(top[i], warp_reduce(x, Max{}));
      const float shrink = top[i] == -INFINITY ? 0.0f : expf(top[i] - new_top),
                  weight = seen ? expf(x - new_top) : 0.0f;
      total[i] = total[i] * shrink + warp_sum(weight);
      top[i] = new_top;
      weights[i * (kColumns + 1) + lane] = weight;
#pragma unroll
      for (int j = 0; j < kFeatureSteps; ++j) acc[i][j] *= shrink;
    }
    __syncthreads();
    load_rows(s.tile, p.v, b, g, n0, p.Tk, kColumns, p.Dv);
    __syncthreads();
    add_weighted(acc, weights, s.tile, lane, p.Dv);
  }
  float factor[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    factor[i] = total[i] > 0 ? 1.0f / total[i] : (total[i] == 0 ? 0.0f : total[i]);  // a NaN stays one
    if (lane == 0 && own + i < p.Tq) *p.lse_at(b, h, own + i) = total[i] == 0 ? -INFINITY : top[i] + logf(total[i]);
  }
  store_rows(out, acc, factor, b, h, own, p.Tq, lane, p.Dv);
}

// delta [B, H, Tq] = rowwise d_out . out. One thread a row, features in the order of dot_rows: a row that sees one key
// then has exactly d_out . v as its delta, and the gradient of its score is exactly zero, as it has to be.
template <class T>
__global__ void __launch_bounds__(kThreads)
    delta_kernel(const Problem<T> p, const View<const T> out, const View<const T> d_out, float* delta) {
  const std::int64_t n = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (n >= std::int64_t{p.B} * p.H * p.Tq) return;
  const int i = static_cast<int>(n % p.Tq), h = static_cast<int>(n / p.Tq % p.H), b = static_cast<int>(n / p.Tq / p.H);
  const T *own = out.row(b, i, h), *gradient = d_out.row(b, i, h);
  float sum = 0;
  for (int c = 0; c < p.Dv; ++c) sum += to_float(own[c]) * to_float(gradient[c]);
  delta[n] = sum;
}

template <class T>
struct Gradients {
  View<const T> d_out;
  const float* delta;
  View<T> d_q, d_k, d_v;
};

template <class T, int ROWS>
__global__ void __launch_bounds__(kThreads) backward_q_kernel(const Problem<T> p, const Gradients<T> grad) {
  constexpr int kRows = kWarps * ROWS;
  extern __shared__ float memory[];
  const Shared s = carve(memory, kRows, p.Dqk, p.Dv, max(p.Dqk, p.Dv));
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int b = static_cast<int>(blockIdx.z), h = static_cast<int>(blockIdx.y), g = h / (p.H / p.G);
  const int first = static_cast<int>(blockIdx.x) * kRows, own = first + warp * ROWS;
  load_rows(s.first, p.q, b, h, first, p.Tq, kRows, p.Dqk);
  load_rows(s.second, grad.d_out, b, h, first, p.Tq, kRows, p.Dv);
  if (p.masked()) load_masks(s.row_masks, p.q_indices, b, h, first, p.Tq, kRows, p.k_q);
  Span span[ROWS];
  float lse[ROWS], delta[ROWS], acc[ROWS][kFeatureSteps] = {};
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    span[i] = visible_keys(p, b, own + i);
    const bool live = own + i < p.Tq;
    lse[i] = live ? *p.lse_at(b, h, own + i) : 0.0f;
    delta[i] = live ? grad.delta[(std::int64_t{b} * p.H + h) * p.Tq + own + i] : 0.0f;
  }
  const int begin = visible_keys(p, b, first).lo / kColumns * kColumns,
            end = visible_keys(p, b, min(first + kRows, p.Tq) - 1).hi;
  float* weights = s.weights + warp * ROWS * (kColumns + 1);
  for (int n0 = begin; n0 < end; n0 += kColumns) {
    float d_p[ROWS], score[ROWS];
    __syncthreads();
    load_rows(s.tile, p.v, b, g, n0, p.Tk, kColumns, p.Dv);
    __syncthreads();
    dot_rows(d_p, s.second + warp * ROWS * (p.Dv + 1), s.tile, lane, p.Dv);
    __syncthreads();
    load_rows(s.tile, p.k, b, g, n0, p.Tk, kColumns, p.Dqk);
    if (p.masked()) load_masks(s.column_masks, p.k_indices, b, g, n0, p.Tk, kColumns, p.k_k);
    __syncthreads();
    dot_rows(score, s.first + warp * ROWS * (p.Dqk + 1), s.tile, lane, p.Dqk);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      const bool seen = counts(p, span[i], own + i, n0 + lane, s.row_masks + (warp * ROWS + i) * kMaskWords,
                               s.column_masks + lane * kMaskWords);
      const float weight = seen ? expf(score[i] * p.scale - lse[i]) : 0.0f;
      weights[i * (kColumns + 1) + lane] = weight * (d_p[i] - delta[i]);
    }
    __syncwarp();
    add_weighted(acc, weights, s.tile, lane, p.Dqk);
    __syncwarp();
  }
  float factor[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) factor[i] = p.scale;
  store_rows(grad.d_q, acc, factor, b, h, own, p.Tq, lane, p.Dqk);
}

// The queries that can see a key of [n0, n1): [begin, end), before documents are looked at.
template <class T>
__device__ __forceinline__ Span seeing_queries(const Problem<T>& p, int n0, int n1) {
  const int begin = p.causal ? max(0, n0 - p.query_offset) : 0;
  const int end = p.window > 0 ? min(p.Tq, n1 - 1 + p.window - p.query_offset) : p.Tq;
  return {begin, end};
}

template <class T, int ROWS>
__global__ void __launch_bounds__(kThreads) backward_kv_kernel(const Problem<T> p, const Gradients<T> grad) {
  constexpr int kRows = kWarps * ROWS;
  extern __shared__ float memory[];
  const Shared s = carve(memory, kRows, p.Dqk, p.Dv, max(p.Dqk, p.Dv));
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int b = static_cast<int>(blockIdx.z), g = static_cast<int>(blockIdx.y), share = p.H / p.G;
  const int first = static_cast<int>(blockIdx.x) * kRows, own = first + warp * ROWS;
  load_rows(s.first, p.k, b, g, first, p.Tk, kRows, p.Dqk);
  load_rows(s.second, p.v, b, g, first, p.Tk, kRows, p.Dv);
  if (p.masked()) load_masks(s.row_masks, p.k_indices, b, g, first, p.Tk, kRows, p.k_k);
  float d_k[ROWS][kFeatureSteps] = {}, d_v[ROWS][kFeatureSteps] = {};
  const Span queries = seeing_queries(p, first, min(first + kRows, p.Tk));
  float* weights = s.weights + warp * ROWS * (kColumns + 1);
  for (int h = g * share; h < (g + 1) * share; ++h)
    for (int i0 = queries.lo; i0 < queries.hi; i0 += kColumns) {
      float score[ROWS], d_p[ROWS];
      __syncthreads();
      load_rows(s.tile, p.q, b, h, i0, p.Tq, kColumns, p.Dqk);
      if (p.masked()) load_masks(s.column_masks, p.q_indices, b, h, i0, p.Tq, kColumns, p.k_q);
      __syncthreads();
      dot_rows(score, s.first + warp * ROWS * (p.Dqk + 1), s.tile, lane, p.Dqk);
      const int i = i0 + lane;
      const Span span = visible_keys(p, b, i);
      const float lse = i < p.Tq ? *p.lse_at(b, h, i) : 0.0f;
      const float delta = i < p.Tq ? grad.delta[(std::int64_t{b} * p.H + h) * p.Tq + i] : 0.0f;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const bool seen = counts(p, span, i, own + r, s.column_masks + lane * kMaskWords,
                                 s.row_masks + (warp * ROWS + r) * kMaskWords);
        score[r] = seen ? expf(score[r] * p.scale - lse) : 0.0f;
        weights[r * (kColumns + 1) + lane] = score[r];
      }
      __syncthreads();
      load_rows(s.tile, grad.d_out, b, h, i0, p.Tq, kColumns, p.Dv);
      __syncthreads();
      dot_rows(d_p, s.second + warp * ROWS * (p.Dv + 1), s.tile, lane, p.Dv);
      add_weighted(d_v, weights, s.tile, lane, p.Dv);
      __syncthreads();
#pragma unroll
      for (int r = 0; r < ROWS; ++r) weights[r * (kColumns + 1) + lane] = score[r] * (d_p[r] - delta);
      load_rows(s.tile, p.q, b, h, i0, p.Tq, kColumns, p.Dqk);
      __syncthreads();
      add_weighted(d_k, weights, s.tile, lane, p.Dqk);
    }
  float one[ROWS], scale[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    one[r] = 1.0f;
    scale[r] = p.scale;
  }
  store_rows(grad.d_v, d_v, one, b, g, own, p.Tk, lane, p.Dv);
  store_rows(grad.d_k, d_k, scale, b, g, own, p.Tk, lane, p.Dqk);
}

template <class T>
Problem<T> problem_of(const ReferenceForward& a) {
  const bool masked = !a.q_indices.empty();
  Problem<T> p{};
  p.q = view<const T>(a.q);
  p.k = view<const T>(a.k);
  p.v = view<const T>(a.v);
  if (masked) {
    p.q_indices = view<const std::uint8_t>(a.q_indices);
    p.k_indices = view<const std::uint8_t>(a.k_indices);
    p.k_q = static_cast<int>(a.q_indices.dim(3));
    p.k_k = static_cast<int>(a.k_indices.dim(3));
  }
  p.B = static_cast<int>(a.q.dim(0));
  p.Tq = static_cast<int>(a.q.dim(1));
  p.Tk = static_cast<int>(a.k.dim(1));
  p.H = static_cast<int>(a.q.dim(2));
  p.G = static_cast<int>(a.k.dim(2));
  p.Dqk = static_cast<int>(a.q.dim(3));
  p.Dv = static_cast<int>(a.v.dim(3));
  p.scale = a.scale;
  p.causal = a.ranges.causal;
  p.query_offset = static_cast<int>(a.ranges.query_offset);
  p.window = static_cast<int>(a.ranges.window);
  p.first_key = a.ranges.first_key.empty() ? nullptr : data_of<const std::int32_t>(a.ranges.first_key);
  p.first_key_stride = a.ranges.first_key.stride[0];
  p.lse = data_of<float>(a.lse);
  p.lse_stride_b = a.lse.stride[0];
  p.lse_stride_h = a.lse.stride[1];
  require(p.Dqk <= kMaxFeatures && p.Dv <= kMaxFeatures && p.H % p.G == 0 && a.q_indices.empty() == a.k_indices.empty(),
          "internal error: attention reference: q {}, k {}, v {}", a.q, a.k, a.v);
  return p;
}

// Launches `kernel` over `rows` row tiles with the shared memory that it carves.
template <class... Args>
void launch(CudaState& state, void (*kernel)(Args...), dim3 grid, int floats, const Args&... args) {
  const int bytes = floats * static_cast<int>(sizeof(float));
  SFA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<grid, kThreads, static_cast<std::size_t>(bytes), state.stream>>>(args...);
  SFA_LAUNCH_CHECK();
}

// Rows a warp: fewer for wide heads, so that a block fits into the 99 KiB of shared memory that every supported card
// has.
template <class F>
void for_rows(int D, F&& f) {
  if (D <= 128) return f.template operator()<4>();
  f.template operator()<2>();
}

}  // namespace

void attention_reference_forward(Context& ctx, const ReferenceForward& args) {
  if (args.q.numel() == 0) return;
  for_float_type(args.q.dtype, "attention reference", [&]<class T>() {
    const Problem<T> p = problem_of<T>(args);
    const int D = std::max(p.Dqk, p.Dv);
    for_rows(D, [&]<int ROWS>() {
      constexpr int kRows = kWarps * ROWS;
      const dim3 grid(blocks_for(p.Tq, kRows), static_cast<unsigned>(p.H), static_cast<unsigned>(p.B));
      launch(ctx.cuda(), forward_kernel<T, ROWS>, grid, shared_floats(kRows, p.Dqk, 0, D), p, view<T>(args.out));
    });
  });
}

void attention_reference_backward(Context& ctx, const ReferenceBackward& args) {
  if (args.forward.q.numel() == 0) return;
  ArenaScope scope(*args.scratch);
  const Tensor& q = args.forward.q;
  float* delta = data_of<float>(args.scratch->take(DType::f32, {q.dim(0), q.dim(2), q.dim(1)}));
  if (ctx.planning) return;
  CudaState& state = ctx.cuda();
  for_float_type(q.dtype, "attention reference", [&]<class T>() {
    const Problem<T> p = problem_of<T>(args.forward);
    const auto d_out = view<const T>(args.d_out);
    delta_kernel<T><<<blocks_for(std::int64_t{p.B} * p.H * p.Tq, kThreads), kThreads, 0, state.stream>>>(
        p, view<const T>(args.forward.out), d_out, delta);
    SFA_LAUNCH_CHECK();
    const Gradients<T> grad{
        .d_out = d_out, .delta = delta, .d_q = view<T>(args.d_q), .d_k = view<T>(args.d_k), .d_v = view<T>(args.d_v)};
    const int D = std::max(p.Dqk, p.Dv);
    for_rows(D, [&]<int ROWS>() {
      constexpr int kRows = kWarps * ROWS;
      const int floats = shared_floats(kRows, p.Dqk, p.Dv, D);
      const auto H = static_cast<unsigned>(p.H), G = static_cast<unsigned>(p.G), B = static_cast<unsigned>(p.B);
      launch(state, backward_q_kernel<T, ROWS>, dim3(blocks_for(p.Tq, kRows), H, B), floats, p, grad);
      launch(state, backward_kv_kernel<T, ROWS>, dim3(blocks_for(p.Tk, kRows), G, B), floats, p, grad);
    });
  });
}

}  // namespace sfa::cuda_ops
