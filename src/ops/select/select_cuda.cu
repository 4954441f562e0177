// A group of LANES lanes selects for one row of features; a lane owns EACH neighbouring features. Every feature gets a
// key that orders it as the contract wants: magnitude's bits (NaN above infinity), below them the complemented index,
// so that keys are unique. k rounds of "largest key of the group" then pick the support exactly, ties and all. The rule
// of two in four keeps the two largest keys of each group of four first: greedy selection never takes another.
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ops/select/select_bf16.cuh"
#include "ops/select/select_cuda.h"
#include "ops/select/select_pairs.cuh"
#include "ops/select/select_rows.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;

template <class T>
using KeyOf = std::conditional_t<sizeof(T) == 2, std::uint32_t, unsigned long long>;

// 0 is left for features that cannot be chosen (any more).
__device__ __forceinline__ std::uint32_t sort_key(bf16 x, int d) {
  return ((__bfloat16_as_ushort(x) & 0x7fffu) + 1u) << 8 | static_cast<std::uint32_t>(255 - d);
}
__device__ __forceinline__ unsigned long long sort_key(float x, int d) {
  return (static_cast<unsigned long long>(__float_as_uint(x) & 0x7fffffffu) + 1u) << 8 |
         static_cast<unsigned long long>(255 - d);
}

struct Largest {
  template <class K>
  __device__ __forceinline__ K operator()(K a, K b) const {
    return a > b ? a : b;
  }
};

template <class T>
struct Pointers {
  RowView<const T> x;
  RowView<T> dense;  // data null = not wanted
  T* values;
  std::uint8_t* indices;
  std::uint32_t rows;
  int D, k;
  bool two_of_four;
};

template <int EACH, class K>
__device__ __forceinline__ void keep_two_of_four(K (&key)[EACH]) {
#pragma unroll
  for (int group = 0; group < EACH; group += 4) {
    bool keep[4];
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      int larger = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b) larger += key[group + b] > key[group + a] ? 1 : 0;
      keep[a] = larger < 2;
    }
#pragma unroll
    for (int a = 0; a < 4; ++a)
      if (!keep[a]) key[group + a] = 0;
  }
}

// Bit e: feature e of this lane is in the support.
template <int LANES, int EACH, class K>
__device__ __forceinline__ unsigned choose(K (&key)[EACH], int k) {
  unsigned chosen = 0;
  for (int round = 0; round < k; ++round) {
    K best = key[0];
#pragma unroll
    for (int e = 1; e < EACH; ++e) best = Largest{}(best, key[e]);
    best = warp_reduce<LANES>(best, Largest{});
#pragma unroll
    for (int e = 0; e < EACH; ++e)
      if (key[e] == best && best != 0) {
        chosen |= 1u << e;
        key[e] = 0;
      }
  }
  return chosen;
}

template <class T, int LANES, int EACH, bool VECTORS>
__global__ void __launch_bounds__(kThreads) select_kernel(const Pointers<T> p) {
  const int lane = static_cast<int>(threadIdx.x) % LANES, first = lane * EACH;
  const std::uint32_t own_row = blockIdx.x * (kThreads / LANES) + threadIdx.x / LANES;
  const bool live = own_row < p.rows;
  const std::uint32_t row = live ? own_row : p.rows - 1;  // the last warp's spare groups work along without storing
  const T* from = p.x.row(row);
  Vector<T, EACH> x;
  KeyOf<T> key[EACH];
  if (VECTORS && first < p.D) x = *reinterpret_cast<const Vector<T, EACH>*>(from + first);
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    const bool inside = first + e < p.D;
    if (!VECTORS || !inside) x.v[e] = inside ? from[first + e] : from_float<T>(0.0f);
    key[e] = inside ? sort_key(x.v[e], first + e) : KeyOf<T>{0};
  }
  if (p.two_of_four) keep_two_of_four(key);
  const unsigned chosen = choose<LANES>(key, p.k);

  int place = __popc(chosen);
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    const int before = __shfl_up_sync(kAllLanes, place, step, LANES);
    if (lane >= step) place += before;
  }
  place -= __popc(chosen);
  if (!live || first >= p.D) return;
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    if ((chosen >> e & 1u) == 0) {
      x.v[e] = from_float<T>(0.0f);
      continue;
    }
    p.values[std::int64_t{row} * p.k + place] = x.v[e];
    p.indices[std::int64_t{row} * p.k + place] = static_cast<std::uint8_t>(first + e);
    ++place;
  }
  if (p.dense.data == nullptr) return;
  T* to = p.dense.row(row) + first;
  if (VECTORS) {
    *reinterpret_cast<Vector<T, EACH>*>(to) = x;
  } else {
#pragma unroll
    for (int e = 0; e < EACH; ++e)
      if (first + e < p.D) to[e] = x.v[e];
  }
}

template <class T, int LANES, int EACH, bool VECTORS>
__global__ void __launch_bounds__(kThreads)
    mask_kernel(const RowView<T> d_x, const std::uint8_t* __restrict__ indices, std::uint32_t rows, int D, int k) {
  const int first = static_cast<int>(threadIdx.x) % LANES * EACH;
  const std::uint32_t row = blockIdx.x * (kThreads / LANES) + threadIdx.x / LANES;
  if (row >= rows || first >= D) return;
  const std::uint8_t* own_indices = indices + std::int64_t{row} * k;
  unsigned keep = 0;
  const auto note = [&](int d) {
    if (d >= first && d < first + EACH) keep |= 1u << (d - first);
  };
  if (k % 8 == 0) {  // then every row is aligned to 8 bytes, as the whole is
    for (int i = 0; i < k; i += 8) {
      const auto word = *reinterpret_cast<const uint2*>(own_indices + i);
#pragma unroll
      for (int byte = 0; byte < 32; byte += 8) {
        note(static_cast<int>(word.x >> byte & 255u));
        note(static_cast<int>(word.y >> byte & 255u));
      }
    }
  } else {
    for (int i = 0; i < k; ++i) note(own_indices[i]);
  }
  T* own = d_x.row(row) + first;
  if (VECTORS) {
    auto x = *reinterpret_cast<Vector<T, EACH>*>(own);
#pragma unroll
    for (int e = 0; e < EACH; ++e)
      if ((keep >> e & 1u) == 0) x.v[e] = from_float<T>(0.0f);
    *reinterpret_cast<Vector<T, EACH>*>(own) = x;
  } else {
#pragma unroll
    for (int e = 0; e < EACH; ++e)
      if (first + e < D && (keep >> e & 1u) == 0) own[e] = from_float<T>(0.0f);
  }
}

template <int LANES_, int EACH_, bool VECTORS_>
struct Shape {
  static constexpr int LANES = LANES_, EACH = EACH_;
  static constexpr bool VECTORS = VECTORS_;
};

// Calls f with the smallest shape that holds D features.
template <class F>
void for_shape(std::int64_t D, bool vectors, F&& f) {
  require(D <= 256, "internal error: selection among {} features; at most 256 are supported on a GPU", D);
  const auto with = [&]<int LANES, int EACH>() {
    vectors ? f(Shape<LANES, EACH, true>{}) : f(Shape<LANES, EACH, false>{});
  };
  if (D <= 32) return with.template operator()<8, 4>();
  if (D <= 64) return with.template operator()<16, 4>();
  if (D <= 128) return with.template operator()<32, 4>();
  with.template operator()<32, 8>();
}

}  // namespace

void select_topk(Context& ctx, const Select& args) {
  CudaState& state = ctx.cuda();
  const std::int64_t D = args.x.dim(3), rows = args.x.dim(0) * args.x.dim(1) * args.x.dim(2);
  if (rows == 0) return;
  require(args.values.contiguous() && args.indices.contiguous(),
          "internal error: select_topk: values and indices must be contiguous");
  if (args.pairs) return select_topk_pairs(state, args);
  if (select_topk_bf16(state, args)) return;
  const std::int64_t each = D <= 128 ? 4 : 8;
  for_float_type(args.x.dtype, "select_topk", [&]<class T>() {
    const Pointers<T> p{.x = row_view<const T>(args.x),
                        .dense = args.dense.empty() ? RowView<T>{} : row_view<T>(args.dense),
                        .values = data_of<T>(args.values),
                        .indices = data_of<std::uint8_t>(args.indices),
                        .rows = static_cast<std::uint32_t>(rows),
                        .D = static_cast<int>(D),
                        .k = static_cast<int>(args.k),
                        .two_of_four = args.two_of_four};
    for_shape(D, aligned_rows(args.x, each) && aligned_rows(args.dense, each), [&]<class S>(S) {
      select_kernel<T, S::LANES, S::EACH, S::VECTORS>
          <<<blocks_for(rows, kThreads / S::LANES), kThreads, 0, state.stream>>>(p);
    });
  });
  SFA_LAUNCH_CHECK();
}

void select_mask_gradient(Context& ctx, const Tensor& d_x, const Tensor& indices) {
  CudaState& state = ctx.cuda();
  const std::int64_t D = d_x.dim(3), rows = d_x.dim(0) * d_x.dim(1) * d_x.dim(2), k = indices.dim(3);
  if (rows == 0) return;
  require(indices.contiguous() && reinterpret_cast<std::uintptr_t>(indices.data) % 8 == 0,
          "internal error: select_mask_gradient: indices must be contiguous and aligned to 8 bytes");
  for_float_type(d_x.dtype, "select_mask_gradient", [&]<class T>() {
    const auto launch = [&](auto kernel, int lanes) {
      kernel<<<blocks_for(rows, kThreads / lanes), kThreads, 0, state.stream>>>(
          row_view<T>(d_x), data_of<const std::uint8_t>(indices), static_cast<std::uint32_t>(rows), static_cast<int>(D),
          static_cast<int>(k));
    };
    // Few lanes with many features each: finding the row and reading its indices is then shared by more of them.
    const bool wide = aligned_rows(d_x, 16);
    if (wide && D == 64) return launch(mask_kernel<T, 4, 16, true>, 4);
    if (wide && D == 128) return launch(mask_kernel<T, 8, 16, true>, 8);
    for_shape(D, aligned_rows(d_x, D <= 128 ? 4 : 8),
              [&]<class S>(S) { launch(mask_kernel<T, S::LANES, S::EACH, S::VECTORS>, S::LANES); });
  });
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::cuda_ops
