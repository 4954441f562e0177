// A lane owns 16 neighbouring features. It sorts their keys (select_cuda.cu says what a key is) by a network, keeps the
// KEEP largest, and merges them with those of the other lanes of its row: of two descending lists the KEEP largest are
// max(a[i], b[KEEP-1-i]), a bitonic list that a half-cleaner sorts again. The k-th key is the threshold of the row.
// Sorting in registers needs few shuffles, which were the limit of picking one feature a round. Values and indices of a
// warp's rows lie side by side and leave through shared memory in whole lines.
#include "cuda/reduce.cuh"
#include "ops/select/select_bf16.cuh"
#include "ops/select/select_rows.cuh"
#include "ops/select/sort_network.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 16;
constexpr int kMaxKeep = 16;

// The KEEP largest of a lane's 16 keys, descending. s: four descending lists of four.
template <int KEEP>
__device__ __forceinline__ void largest_of_lane(std::uint32_t (&top)[KEEP], std::uint32_t (&s)[kEach]) {
  merge_4_4(s);
  merge_4_4(s + 8);
  if constexpr (KEEP == 8) {
#pragma unroll
    for (int i = 0; i < 8; ++i) top[i] = max(s[i], s[15 - i]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      top[i] = s[i];
      top[8 + i] = s[15 - i];
    }
  }
  sort_bitonic(top);
}

struct Job {
  RowView<const bf16> x;
  RowView<bf16> dense;  // data null = not wanted
  bf16* values;
  std::uint8_t* indices;
  std::uint32_t rows;
  int k;
  bool two_of_four;
};

template <int LANES, int KEEP>
__global__ void __launch_bounds__(kThreads) select_kernel(const Job p) {
  constexpr int kWarps = kThreads / 32, kRows = 32 / LANES;  // rows a warp
  __shared__ bf16 values[kWarps][kRows * kMaxKeep];
  __shared__ std::uint8_t indices[kWarps][kRows * kMaxKeep];
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int place_in_row = static_cast<int>(lane % LANES), first = place_in_row * kEach;
  const std::uint32_t first_row = (blockIdx.x * kWarps + warp) * kRows;
  if (first_row >= p.rows) return;
  const std::uint32_t own_row = first_row + lane / LANES;
  const bool live = own_row < p.rows;
  const std::uint32_t row = live ? own_row : p.rows - 1;  // spare lanes of the last warp work along without storing

  using Half = Vector<bf16, 8>;
  const bf16* from = p.x.row(row) + first;
  Half x[2] = {*reinterpret_cast<const Half*>(from), *reinterpret_cast<const Half*>(from + 8)};
  std::uint32_t key[kEach], sorted[kEach], top[KEEP], least[kEach / 4];
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const std::uint32_t magnitude = __bfloat16_as_ushort(x[e / 8].v[e % 8]) & 0x7fffu;
    sorted[e] = key[e] = (magnitude << 8 | static_cast<std::uint32_t>(255 - first - e)) + 256;
  }
#pragma unroll
  for (int group = 0; group < kEach / 4; ++group) {
    sort_4(sorted + 4 * group);
    least[group] = p.two_of_four ? sorted[4 * group + 1] : 0;
    if (p.two_of_four) sorted[4 * group + 2] = sorted[4 * group + 3] = 0;
  }
  largest_of_lane<KEEP>(top, sorted);
  merge_lanes<LANES>(top);
  std::uint32_t threshold = top[0];
#pragma unroll
  for (int i = 1; i < KEEP; ++i)
    if (i < p.k) threshold = top[i];

  unsigned chosen = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) chosen |= key[e] >= max(threshold, least[e / 4]) ? 1u << e : 0u;
  int place = __popc(chosen);
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    const int before = __shfl_up_sync(kAllLanes, place, step, LANES);
    if (place_in_row >= step) place += before;
  }
  place += static_cast<int>(lane / LANES) * p.k - __popc(chosen);
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    if ((chosen >> e & 1u) == 0) {
      x[e / 8].v[e % 8] = from_float<bf16>(0.0f);
      continue;
    }
    values[warp][place] = x[e / 8].v[e % 8];
    indices[warp][place] = static_cast<std::uint8_t>(first + e);
    ++place;
  }
  if (p.dense.data != nullptr && live) {
    bf16* whole = p.dense.row(row) + first;
    *reinterpret_cast<Half*>(whole) = x[0];
    *reinterpret_cast<Half*>(whole + 8) = x[1];
  }
  __syncwarp();
  const int count = min(kRows, static_cast<int>(p.rows - first_row)) * p.k;
  const std::int64_t to = std::int64_t{first_row} * p.k;
  for (int i = static_cast<int>(lane); i < count; i += 32) {
    p.values[to + i] = values[warp][i];
    p.indices[to + i] = indices[warp][i];
  }
}

}  // namespace

bool select_topk_bf16(CudaState& state, const Select& args) {
  const std::int64_t D = args.x.dim(3), rows = args.x.dim(0) * args.x.dim(1) * args.x.dim(2);
  if (args.pairs || args.x.dtype != DType::bf16 || args.k > kMaxKeep || !aligned_rows(args.x, 8) ||
      !aligned_rows(args.dense, 8))
    return false;
  const Job job{.x = row_view<const bf16>(args.x),
                .dense = args.dense.empty() ? RowView<bf16>{} : row_view<bf16>(args.dense),
                .values = data_of<bf16>(args.values),
                .indices = data_of<std::uint8_t>(args.indices),
                .rows = static_cast<std::uint32_t>(rows),
                .k = static_cast<int>(args.k),
                .two_of_four = args.two_of_four};
  const auto launch = [&]<int LANES>() {
    const unsigned blocks = blocks_for(rows, kThreads / LANES);
    if (args.k <= 8)
      select_kernel<LANES, 8><<<blocks, kThreads, 0, state.stream>>>(job);
    else
      select_kernel<LANES, 16><<<blocks, kThreads, 0, state.stream>>>(job);
    SFA_LAUNCH_CHECK();
    return true;
  };
  switch (D) {
    case 32:
      return launch.template operator()<2>();
    case 64:
      return launch.template operator()<4>();
    case 128:
      return launch.template operator()<8>();
    case 256:
      return launch.template operator()<16>();
    default:
      return false;
  }
}

}  // namespace sfa::cuda_ops
