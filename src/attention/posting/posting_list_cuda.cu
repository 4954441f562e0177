// Posting lists and the forward pass over them, on FMA units.
//
// Lists are built tile by tile of 64 keys, which makes the paper's binary search for a tile's part of a list a look-up.
// A thread owns one query row: for each of its k features it walks the tile's list and adds q * k into its own row of
// scores in shared memory, so that nothing is shared and nothing is atomic; then the online softmax, in which pairs
// without a common feature take part with their score of 0, and O += P V with V in shared memory as f32, each value
// read by all threads at once.
#include <algorithm>

#include "attention/posting/posting_list_cuda.h"
#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kTile = static_cast<int>(kPostingTile);
constexpr int kRows = 128;          // query rows, and threads, of a block
constexpr int kStride = kTile + 1;  // of a row of scores: threads walking along theirs meet no bank twice

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
struct Lists {
  std::uint16_t* first;
  std::uint8_t* keys;
  T* values;
  int features, slots, tiles, heads;

  [[nodiscard]] __device__ __forceinline__ std::int64_t tile_at(int b, int g, int tile) const {
    return (static_cast<std::int64_t>(b) * heads + g) * tiles + tile;
  }
};
template <class T>
Lists<T> lists_of(const PostingLists& l) {
  return {data_of<std::uint16_t>(l.first),      data_of<std::uint8_t>(l.keys),   data_of<T>(l.values),
          static_cast<int>(l.first.dim(3)) - 1, static_cast<int>(l.keys.dim(3)), static_cast<int>(l.first.dim(2)),
          static_cast<int>(l.first.dim(1))};
}

// A thread a key. Which keys have a feature is a word of 64 bits; what stands below one's own bit is its place.
template <class T>
__global__ void __launch_bounds__(kTile)
    build_kernel(View<const T> values, View<const std::uint8_t> indices, int k, int Tk, Lists<T> lists) {
  __shared__ unsigned long long owners[256];
  __shared__ unsigned first[257];
  const int tile = blockIdx.x, g = blockIdx.y, b = blockIdx.z, key = threadIdx.x, t = tile * kTile + key;
  for (int f = key; f < lists.features; f += kTile) owners[f] = 0;
  __syncthreads();
  const std::uint8_t* own = indices.row(b, min(t, Tk - 1), g);
  if (t < Tk)
    for (int i = 0; i < k; ++i) atomicOr(&owners[own[i]], 1ull << key);
  __syncthreads();
  if (key == 0) {
    unsigned sum = 0;
    for (int f = 0; f < lists.features; ++f) {
      first[f] = sum;
      sum += __popcll(owners[f]);
    }
    first[lists.features] = sum;
  }
  __syncthreads();
  const std::int64_t at = lists.tile_at(b, g, tile);
  for (int f = key; f <= lists.features; f += kTile)
    lists.first[at * (lists.features + 1) + f] = static_cast<std::uint16_t>(first[f]);
  if (t >= Tk) return;
  const T* value = values.row(b, t, g);
  for (int i = 0; i < k; ++i) {
    const int f = own[i];
    const std::int64_t to = at * lists.slots + first[f] + __popcll(owners[f] & ((1ull << key) - 1));
    lists.keys[to] = static_cast<std::uint8_t>(key);
    lists.values[to] = value[i];
  }
}

template <class T>
struct Problem {
  View<const T> q;
  View<const std::uint8_t> q_indices;
  View<const T> v;
  View<T> out;
  Lists<T> lists;
  float* lse;  // [B, H, Tq]
  std::int64_t lse_stride_b, lse_stride_h;
  int k, Tq, Tk, H, G;
  float scale;
  bool causal;
  int query_offset, window;
  const std::int32_t* first_key;
  std::int64_t first_key_stride;
};

struct Span {
  int lo, hi;
};
template <class T>
__device__ __forceinline__ Span keys_of(const Problem<T>& p, int b, int i) {
  const int position = i + p.query_offset;
  const int hi = p.causal ? min(max(position + 1, 0), p.Tk) : p.Tk;
  int lo = p.window > 0 ? max(0, position + 1 - p.window) : 0;
  if (p.first_key != nullptr) lo = max(lo, p.first_key[b * p.first_key_stride + i]);
  return {min(lo, hi), hi};
}

/// One tile of keys, and the block's scores.
struct Shared {
  float *v, *values, *scores;  // [kTile][Dv], [slots], [kRows][kStride]
  std::uint16_t* first;        // [features + 1]
  std::uint8_t* keys;          // [slots]

  __device__ __forceinline__ Shared(float* memory, int Dv, int slots, int features)
      : v(memory),
        values(v + kTile * Dv),
        scores(values + slots),
        first(reinterpret_cast<std::uint16_t*>(scores + kRows * kStride)),
        keys(reinterpret_cast<std::uint8_t*>(first + features + 1)) {}
  static std::size_t bytes(int Dv, int slots, int features) {
    return (static_cast<std::size_t>(kTile) * Dv + slots + kRows * kStride) * sizeof(float) + (features + 1) * 2u +
           static_cast<std::size_t>(slots);
  }
};

template <class T, int kDv>
__device__ __forceinline__ void load_tile(const Problem<T>& p, const Shared& shared, int b, int g, int tile) {
  const Lists<T>& l = p.lists;
  const std::int64_t at = l.tile_at(b, g, tile);
  const std::uint16_t* first = l.first + at * (l.features + 1);
  for (int f = threadIdx.x; f <= l.features; f += kRows) shared.first[f] = first[f];
  const int count = first[l.features];
  for (int i = threadIdx.x; i < count; i += kRows) {
    shared.keys[i] = l.keys[at * l.slots + i];
    shared.values[i] = to_float(l.values[at * l.slots + i]);
  }
  for (int i = threadIdx.x; i < kTile * kDv; i += kRows) {
    const int key = tile * kTile + i / kDv;
    shared.v[i] = key < p.Tk ? to_float(p.v.row(b, key, g)[i % kDv]) : 0.0f;
  }
}

/// Scores of one row against the tile, lines 6 to 16 of Algorithm 1; `row` has kTile places.
template <class T>
__device__ __forceinline__ void add_scores(const Shared& shared, float* row, const T* values,
                                           const std::uint8_t* indices, int k, float scale) {
#pragma unroll 8
  for (int c = 0; c < kTile; ++c) row[c] = 0.0f;
  for (int n = 0; n < k; ++n) {
    const int feature = indices[n], end = shared.first[feature + 1];
    const float q = to_float(values[n]) * scale;
    for (int at = shared.first[feature]; at < end; ++at) row[shared.keys[at]] += q * shared.values[at];
  }
}

/// Grid: x row blocks, the longest first; y heads; z batch.
template <class T, int kDv>
__global__ void __launch_bounds__(kRows) forward_kernel(const Problem<T> p) {
  extern __shared__ float4 memory[];
  const Shared shared(reinterpret_cast<float*>(memory), kDv, p.lists.slots, p.lists.features);
  const int h = blockIdx.y, b = blockIdx.z, g = h / (p.H / p.G);
  const int first = (gridDim.x - 1 - blockIdx.x) * kRows, i = first + threadIdx.x, row = min(i, p.Tq - 1);
  const Span own = keys_of(p, b, row);
  // Bounds never fall along the rows.
  const int begin = keys_of(p, b, first).lo / kTile,
            end = (keys_of(p, b, min(first + kRows, p.Tq) - 1).hi + kTile - 1) / kTile;
  const T* values = p.q.row(b, row, h);
  const std::uint8_t* indices = p.q_indices.row(b, row, h);
  float* scores = shared.scores + threadIdx.x * kStride;
  float o[kDv], maximum = -INFINITY, sum = 0.0f;
#pragma unroll
  for (int c = 0; c < kDv; ++c) o[c] = 0.0f;
  for (int tile = begin; tile < end; ++tile) {
    __syncthreads();
    load_tile<T, kDv>(p, shared, b, g, tile);
    __syncthreads();
    const int lo = max(own.lo - tile * kTile, 0), hi = min(own.hi - tile * kTile, kTile);
    if (lo >= hi) continue;
    add_scores(shared, scores, values, indices, p.k, p.scale);
    float largest = maximum;
    for (int c = lo; c < hi; ++c) largest = fmaxf(largest, scores[c]);
    const float factor = expf(maximum - largest);
    maximum = largest;
    sum *= factor;
#pragma unroll
    for (int c = 0; c < kDv; ++c) o[c] *= factor;
    for (int c = lo; c < hi; ++c) {
      const float weight = expf(scores[c] - maximum);
      sum += weight;
      const auto* v = reinterpret_cast<const float4*>(shared.v + c * kDv);
#pragma unroll
      for (int n = 0; n < kDv / 4; ++n) {
        const float4 four = v[n];
        o[4 * n] += weight * four.x;
        o[4 * n + 1] += weight * four.y;
        o[4 * n + 2] += weight * four.z;
        o[4 * n + 3] += weight * four.w;
      }
    }
  }
  if (i >= p.Tq) return;
  const bool empty = own.lo >= own.hi;
  p.lse[b * p.lse_stride_b + h * p.lse_stride_h + i] = empty ? -INFINITY : maximum + logf(sum);
  T* out = p.out.row(b, i, h);
#pragma unroll
  for (int c = 0; c < kDv; ++c) out[c] = from_float<T>(empty ? 0.0f : o[c] / sum);
}

template <class T, int kDv>
void launch(CudaState& state, const Problem<T>& p, int B) {
  const std::size_t bytes = Shared::bytes(kDv, p.lists.slots, p.lists.features);
  SFA_CUDA_CHECK(cudaFuncSetAttribute(forward_kernel<T, kDv>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(bytes)));
  const dim3 grid(blocks_for(p.Tq, kRows), static_cast<unsigned>(p.H), static_cast<unsigned>(B));
  forward_kernel<T, kDv><<<grid, kRows, bytes, state.stream>>>(p);
}

}  // namespace

void build_posting_lists(Context& ctx, const Keys& keys, std::int64_t features, const PostingLists& lists) {
  require(lists.first.dim(3) == features + 1 && features <= 256, "internal error: posting lists {} of {} features",
          lists.first, features);
  if (keys.values.numel() == 0) return;
  const dim3 grid(blocks_for(keys.values.dim(1), kTile), static_cast<unsigned>(keys.values.dim(2)),
                  static_cast<unsigned>(keys.values.dim(0)));
  for_float_type(keys.values.dtype, "posting_list", [&]<class T>() {
    build_kernel<<<grid, kTile, 0, ctx.cuda().stream>>>(
        view<const T>(keys.values), view<const std::uint8_t>(keys.indices), static_cast<int>(keys.values.dim(3)),
        static_cast<int>(keys.values.dim(1)), lists_of<T>(lists));
  });
  SFA_LAUNCH_CHECK();
}

void posting_list_forward(Context& ctx, const PostingForward& a) {
  if (a.out.numel() == 0) return;
  const Ranges& r = a.ranges;
  for_float_type(a.out.dtype, "posting_list", [&]<class T>() {
    const Problem<T> p{.q = view<const T>(a.q.values),
                       .q_indices = view<const std::uint8_t>(a.q.indices),
                       .v = view<const T>(a.v),
                       .out = view<T>(a.out),
                       .lists = lists_of<T>(a.lists),
                       .lse = data_of<float>(a.lse),
                       .lse_stride_b = a.lse.stride[0],
                       .lse_stride_h = a.lse.stride[1],
                       .k = static_cast<int>(a.q.values.dim(3)),
                       .Tq = static_cast<int>(a.out.dim(1)),
                       .Tk = static_cast<int>(a.v.dim(1)),
                       .H = static_cast<int>(a.out.dim(2)),
                       .G = static_cast<int>(a.v.dim(2)),
                       .scale = a.scale,
                       .causal = r.causal,
                       .query_offset = static_cast<int>(r.query_offset),
                       .window = static_cast<int>(r.window),
                       .first_key = r.first_key.empty() ? nullptr : data_of<std::int32_t>(r.first_key),
                       .first_key_stride = r.first_key.empty() ? 0 : r.first_key.stride[0]};
    const int B = static_cast<int>(a.out.dim(0)), Dv = static_cast<int>(a.out.dim(3));
    if (Dv == 32) return launch<T, 32>(ctx.cuda(), p, B);
    if (Dv == 64) return launch<T, 64>(ctx.cuda(), p, B);
    require(Dv == 128, "internal error: posting_list: values of {} features", Dv);
    launch<T, 128>(ctx.cuda(), p, B);
  });
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::cuda_ops
