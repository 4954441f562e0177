// Selection of whole pairs (i, i + D/2). A pair's key is the bits of its norm (NaN above infinity).
//   any row      a lane owns four neighbouring pairs; the complemented index below the norm makes keys unique, and k/2
//                rounds of "largest key of the group" pick the support exactly, ties and all.
//   bf16 rows    of 32 to 256 features with k <= 16: a lane owns eight pairs, 16 bytes of each half, sorts their norms
//   by
//                a network and merges them with those of the row's other lanes; the k/2-th is the threshold, and of
//                pairs that equal it the lowest fill up.
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ops/select/pairs_network.cuh"
#include "ops/select/select_pairs.cuh"
#include "ops/select/select_rows.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;

using Key = unsigned long long;

// 0 is left for pairs that cannot be chosen (any more).
__device__ __forceinline__ Key sort_key(float low, float high, int i) {
  return (Key{norm_bits(low, high)} + 1) << 8 | static_cast<Key>(255 - i);
}

struct Largest {
  __device__ __forceinline__ Key operator()(Key a, Key b) const { return a > b ? a : b; }
};

template <class T>
struct Pointers {
  RowView<const T> x;
  RowView<T> dense;  // data null = not wanted
  T* values;
  std::uint8_t* indices;
  std::uint32_t rows;
  int half, pairs;  // of a row, and chosen of them
};

// Four neighbouring features of a row that has `half` of them from `from` on.
template <class T, bool VECTORS>
__device__ __forceinline__ Vector<T, kEach> read(const T* from, int first, int half) {
  if (VECTORS && first < half) return *reinterpret_cast<const Vector<T, kEach>*>(from + first);
  Vector<T, kEach> x;
#pragma unroll
  for (int e = 0; e < kEach; ++e) x.v[e] = first + e < half ? from[first + e] : from_float<T>(0.0f);
  return x;
}

template <class T, bool VECTORS>
__device__ __forceinline__ void write(T* to, int first, int half, const Vector<T, kEach>& x) {
  if (VECTORS) {
    *reinterpret_cast<Vector<T, kEach>*>(to + first) = x;
  } else {
#pragma unroll
    for (int e = 0; e < kEach; ++e)
      if (first + e < half) to[first + e] = x.v[e];
  }
}

template <class T, int LANES, bool VECTORS>
__global__ void __launch_bounds__(kThreads) select_kernel(const Pointers<T> p) {
  const int lane = static_cast<int>(threadIdx.x) % LANES, first = lane * kEach;
  const std::uint32_t own_row = blockIdx.x * (kThreads / LANES) + threadIdx.x / LANES;
  const bool live = own_row < p.rows;
  const std::uint32_t row = live ? own_row : p.rows - 1;  // the last warp's spare groups work along without storing
  const T* from = p.x.row(row);
  Vector<T, kEach> low = read<T, VECTORS>(from, first, p.half), high = read<T, VECTORS>(from + p.half, first, p.half);
  Key key[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e)
    key[e] = first + e < p.half ? sort_key(to_float(low.v[e]), to_float(high.v[e]), first + e) : Key{0};

  unsigned chosen = 0;  // bit e: pair first + e
  for (int round = 0; round < p.pairs; ++round) {
    const Key own = Largest{}(Largest{}(key[0], key[1]), Largest{}(key[2], key[3]));
    const Key best = warp_reduce<LANES>(own, Largest{});
    if (own != best) continue;
#pragma unroll
    for (int e = 0; e < kEach; ++e)
      if (key[e] == best) {
        chosen |= 1u << e;
        key[e] = 0;
      }
  }

  int place = __popc(chosen);
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    const int before = __shfl_up_sync(kAllLanes, place, step, LANES);
    if (lane >= step) place += before;
  }
  if (!live || first >= p.half) return;
  std::int64_t to = std::int64_t{row} * 2 * p.pairs + place - __popc(chosen);
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    if ((chosen >> e & 1u) == 0) {
      low.v[e] = high.v[e] = from_float<T>(0.0f);
      continue;
    }
    p.values[to] = low.v[e];
    p.values[to + p.pairs] = high.v[e];
    p.indices[to] = static_cast<std::uint8_t>(first + e);
    p.indices[to + p.pairs] = static_cast<std::uint8_t>(first + e + p.half);
    ++to;
  }
  if (p.dense.data == nullptr) return;
  write<T, VECTORS>(p.dense.row(row), first, p.half, low);
  write<T, VECTORS>(p.dense.row(row) + p.half, first, p.half, high);
}

template <int LANES>
__global__ void __launch_bounds__(kThreads) select_wide_kernel(const Pointers<bf16> p) {
  constexpr int kWarps = kThreads / 32, kRows = 32 / LANES;  // rows a warp
  __shared__ bf16 values[kWarps][kRows * 2 * kMaxSortedPairs];
  __shared__ std::uint8_t indices[kWarps][kRows * 2 * kMaxSortedPairs];
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int place_in_row = static_cast<int>(lane % LANES), first = place_in_row * kPairsOfLane;
  const std::uint32_t first_row = (blockIdx.x * kWarps + warp) * kRows;
  if (first_row >= p.rows) return;
  const std::uint32_t own_row = first_row + lane / LANES;
  const bool live = own_row < p.rows;
  const std::uint32_t row = live ? own_row : p.rows - 1;  // spare lanes of the last warp work along without storing

  using Pack = Vector<bf16, kPairsOfLane>;
  const bf16* from = p.x.row(row) + first;
  Pack low = *reinterpret_cast<const Pack*>(from), high = *reinterpret_cast<const Pack*>(from + p.half);
  std::uint32_t key[kPairsOfLane];
#pragma unroll
  for (int e = 0; e < kPairsOfLane; ++e) key[e] = norm_bits(to_float(low.v[e]), to_float(high.v[e]));
  const unsigned chosen = choose_pairs<LANES>(key, p.pairs, place_in_row);
  int place = static_cast<int>(lane / LANES) * 2 * p.pairs + before<LANES>(__popc(chosen), place_in_row);
#pragma unroll
  for (int e = 0; e < kPairsOfLane; ++e) {
    if ((chosen >> e & 1u) == 0) {
      low.v[e] = high.v[e] = from_float<bf16>(0.0f);
      continue;
    }
    values[warp][place] = low.v[e];
    values[warp][place + p.pairs] = high.v[e];
    indices[warp][place] = static_cast<std::uint8_t>(first + e);
    indices[warp][place + p.pairs] = static_cast<std::uint8_t>(first + e + p.half);
    ++place;
  }
  if (p.dense.data != nullptr && live) {
    bf16* whole = p.dense.row(row) + first;
    *reinterpret_cast<Pack*>(whole) = low;
    *reinterpret_cast<Pack*>(whole + p.half) = high;
  }
  __syncwarp();
  const int count = min(kRows, static_cast<int>(p.rows - first_row)) * 2 * p.pairs;
  const std::int64_t to = std::int64_t{first_row} * 2 * p.pairs;
  for (int i = static_cast<int>(lane); i < count; i += 32) {
    p.values[to + i] = values[warp][i];
    p.indices[to + i] = indices[warp][i];
  }
}

// False, with nothing queued, when the case is not one of select_wide_kernel's.
bool select_wide(CudaState& state, const Select& args, const Pointers<bf16>& p) {
  if (p.pairs > kMaxSortedPairs || !aligned_rows(args.x, kPairsOfLane) || !aligned_rows(args.dense, kPairsOfLane))
    return false;
  const auto launch = [&]<int LANES>() {
    select_wide_kernel<LANES><<<blocks_for(p.rows, kThreads / LANES), kThreads, 0, state.stream>>>(p);
    SFA_LAUNCH_CHECK();
    return true;
  };
  switch (p.half) {
    case 16:
      return launch.template operator()<2>();
    case 32:
      return launch.template operator()<4>();
    case 64:
      return launch.template operator()<8>();
    case 128:
      return launch.template operator()<16>();
    default:
      return false;
  }
}

}  // namespace

void select_topk_pairs(CudaState& state, const Select& args) {
  const std::int64_t D = args.x.dim(3), rows = args.x.dim(0) * args.x.dim(1) * args.x.dim(2);
  require(D <= 256, "internal error: selection among {} features; at most 256 are supported on a GPU", D);
  const bool vectors = D % (2 * kEach) == 0 && aligned_rows(args.x, kEach) && aligned_rows(args.dense, kEach);
  for_float_type(args.x.dtype, "select_topk", [&]<class T>() {
    const Pointers<T> p{.x = row_view<const T>(args.x),
                        .dense = args.dense.empty() ? RowView<T>{} : row_view<T>(args.dense),
                        .values = data_of<T>(args.values),
                        .indices = data_of<std::uint8_t>(args.indices),
                        .rows = static_cast<std::uint32_t>(rows),
                        .half = static_cast<int>(D / 2),
                        .pairs = static_cast<int>(args.k / 2)};
    if constexpr (std::is_same_v<T, bf16>)
      if (select_wide(state, args, p)) return;
    const auto launch = [&]<int LANES>() {
      const unsigned blocks = blocks_for(rows, kThreads / LANES);
      if (vectors)
        select_kernel<T, LANES, true><<<blocks, kThreads, 0, state.stream>>>(p);
      else
        select_kernel<T, LANES, false><<<blocks, kThreads, 0, state.stream>>>(p);
    };
    if (D <= 32) return launch.template operator()<4>();
    if (D <= 64) return launch.template operator()<8>();
    if (D <= 128) return launch.template operator()<16>();
    launch.template operator()<32>();
  });
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::cuda_ops
