// Selection kernels: one block of threads takes 64 rows of one (batch, head); D / 16 lanes share a row, 16 neighbouring
// features each.
//
// The k-th largest magnitude T is found by bisection over bf16 patterns: a trial counts the magnitudes that are not
// below it, two an instruction. It ends as soon as exactly k are; when equal magnitudes leave more than k, those equal
// to T are taken from the lowest index on. Under topk_2of4 the candidates are the two best of every four features:
// taking features greedily under the constraint yields exactly the k largest of those.
#include "attention/flash/select24.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "core/error.h"

namespace sfa::flash {
namespace {

constexpr int kSelectWarps = 8;
constexpr int kBlockRows = 64;
constexpr unsigned kExcluded = 0xbf80u;  // -1: below every magnitude

/// Where lane `sub` of block row `row` puts the value words of its four groups of features and its metadata.
template <int kD>
struct CompressedLayout {
  static __device__ __forceinline__ int thread_of(int row, int q) { return (row / 16) * 32 + (row % 8) * 4 + q; }
  static __device__ __forceinline__ int value_word(int row, int sub, int group) {
    return (sub / 2 * 128 + thread_of(row, group)) * 4 + sub % 2 * 2 + row / 8 % 2;
  }
  /// In units of 16 bits.
  static __device__ __forceinline__ int meta_half(int row, int sub) {
    const int word = kD / 32 * 512 + sub / 4 * 128 + thread_of(row, sub % 4);
    return word * 2 + row / 8 % 2;
  }
};

__device__ __forceinline__ __nv_bfloat162 as_bf162(unsigned bits) {
  return *reinterpret_cast<__nv_bfloat162*>(&bits);
}

/// Sum over the kLanes lanes of a row.
template <int kLanes>
__device__ __forceinline__ int row_sum(int x) {
#pragma unroll
  for (int d = 1; d < kLanes; d *= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}
/// Sum over the lanes of a row below this one.
template <int kLanes>
__device__ __forceinline__ int row_prefix(int x, int sub) {
  int sum = x;
#pragma unroll
  for (int d = 1; d < kLanes; d *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, d, kLanes);
    if (sub >= d) sum += other;
  }
  return sum - x;
}

/// Magnitudes of 16 features, two a word, that are not below the pattern `trial`.
__device__ __forceinline__ int count_not_below(const unsigned (&magnitude)[8], unsigned trial) {
  const __nv_bfloat162 t = as_bf162(trial * 0x10001u);
  __nv_bfloat162 sum[2] = {__hge2(as_bf162(magnitude[0]), t), __hge2(as_bf162(magnitude[1]), t)};
#pragma unroll
  for (int j = 2; j < 8; ++j) sum[j % 2] = __hadd2(sum[j % 2], __hge2(as_bf162(magnitude[j]), t));
  const __nv_bfloat162 total = __hadd2(sum[0], sum[1]);
  return static_cast<int>(__low2float(total) + __high2float(total));
}

/// Features whose magnitude is not below the pattern. Bit j: feature 2 j, bit 16 + j: feature 2 j + 1.
__device__ __forceinline__ unsigned not_below(const unsigned (&magnitude)[8], unsigned pattern) {
  const __nv_bfloat162 t = as_bf162(pattern * 0x10001u);
  unsigned bits = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) bits |= __hge2_mask(as_bf162(magnitude[j]), t) & 0x10001u << j;
  return bits;
}

/// Bits of features 0..15 in order, from the order of not_below.
__device__ __forceinline__ unsigned in_order(unsigned bits) {
  bits = (bits & 0xf000f0u) << 4 | (bits & 0x0f000fu);
  bits = (bits & 0x0c0c0c0cu) << 2 | (bits & 0x03030303u);
  bits = (bits & 0x22222222u) << 1 | (bits & 0x11111111u);
  return bits & 0xffffu | bits >> 16 << 1;
}

/// Features of this lane that belong to the row's support, bit i: feature i. Every lane of the warp takes part.
template <int kLanes>
__device__ __forceinline__ unsigned support(const unsigned (&magnitude)[8], int k, int sub) {
  __nv_bfloat162 best = as_bf162(magnitude[0]);
#pragma unroll
  for (int j = 1; j < 8; ++j) best = __hmax2(best, as_bf162(magnitude[j]));
  unsigned top =
      max(__bfloat16_as_ushort(__low2bfloat16(best)) & 0x7fffu, __bfloat16_as_ushort(__high2bfloat16(best)) & 0x7fffu);
#pragma unroll
  for (int d = 1; d < kLanes; d *= 2) top = max(top, __shfl_xor_sync(0xffffffffu, top, d));

  // Not below `low` are `found` >= k candidates, not below `high` fewer than k. From the top down in doubling steps
  // until there are k, then by halves.
  unsigned low = 0, high = top + 1, reach = 128, trial = top > reach ? top - reach : 0;
  int found = -1;
  while (__any_sync(0xffffffffu, found != k && high - low > 1)) {
    const int count = row_sum<kLanes>(count_not_below(magnitude, trial));
    if (found != k && high - low > 1) {
      if (count >= k) {
        low = trial;
        found = count;
      } else {
        high = trial;
      }
    }
    reach *= 2;
    trial = found < 0 ? (top > reach ? top - reach : 0) : (low + high) / 2;
  }
  unsigned chosen = in_order(not_below(magnitude, low));
  if (__any_sync(0xffffffffu, found != k)) {  // low is T itself, and some rows have more than k not below it
    const unsigned above = in_order(not_below(magnitude, low + 1));
    unsigned equal = chosen & ~above;
    const int room = k - row_sum<kLanes>(__popc(above)) - row_prefix<kLanes>(__popc(equal), sub);
    if (found != k) {
      while (__popc(equal) > max(room, 0)) equal &= ~(1u << (31 - __clz(equal)));
      chosen = above | equal;
    }
  }
  return chosen;
}

/// The two best of each group of four, ties to the lower index, as bits; the others' magnitudes become kExcluded.
__device__ __forceinline__ unsigned keep_two_of_four(unsigned (&magnitude)[8]) {
  unsigned kept = 0;
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    const unsigned m[4] = {magnitude[2 * g] & 0xffffu, magnitude[2 * g] >> 16, magnitude[2 * g + 1] & 0xffffu,
                           magnitude[2 * g + 1] >> 16};
    const int a = m[0] >= m[1], b = m[0] >= m[2], c = m[0] >= m[3], d = m[1] >= m[2], e = m[1] >= m[3],
              f = m[2] >= m[3];
    const bool keep[4] = {a + b + c >= 2, 1 - a + d + e >= 2, 2 - b - d + f >= 2, 3 - c - e - f >= 2};
#pragma unroll
    for (int i = 0; i < 4; ++i) kept |= keep[i] ? 1u << (4 * g + i) : 0u;
    magnitude[2 * g] = (keep[0] ? m[0] : kExcluded) | (keep[1] ? m[1] : kExcluded) << 16;
    magnitude[2 * g + 1] = (keep[2] ? m[2] : kExcluded) | (keep[3] ? m[3] : kExcluded) << 16;
  }
  return kept;
}

/// Word j of 16 features with those outside `chosen` zeroed.
__device__ __forceinline__ unsigned masked_word(const unsigned (&word)[8], unsigned chosen, int j) {
  return (chosen >> 2 * j & 1u ? word[j] & 0xffffu : 0u) | (chosen >> 2 * j & 2u ? word[j] & 0xffff0000u : 0u);
}

/// This lane's part of the compressed operand: `kept` says which two of four are stored, `chosen` which are not zero.
template <int kD>
__device__ __forceinline__ void stage_compressed(unsigned* staging, const unsigned (&word)[8], unsigned kept,
                                                 unsigned chosen, int row, int sub) {
  unsigned nibbles = 0;
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    const unsigned two = kept >> 4 * g & 15u;
    const unsigned a = masked_word(word, chosen, 2 * g), b = masked_word(word, chosen, 2 * g + 1);
    // first: the lowest kept feature (0, 1 or 2), second: the highest (1, 2 or 3)
    const unsigned first = two & 1u ? 0u : two & 2u ? 1u : 2u, second = two & 8u ? 3u : two & 4u ? 2u : 1u;
    const unsigned low = first == 0 ? a & 0xffffu : first == 1 ? a >> 16 : b & 0xffffu;
    const unsigned high = second == 3 ? b >> 16 : second == 2 ? b & 0xffffu : a >> 16;
    staging[CompressedLayout<kD>::value_word(row, sub, g)] = low | high << 16;
    nibbles |= (first | second << 2) << 4 * g;
  }
  reinterpret_cast<unsigned short*>(staging)[CompressedLayout<kD>::meta_half(row, sub)] =
      static_cast<unsigned short>(nibbles);
}

/// The support of block rows [0, rows) as values and indices: `staged` holds the indices, `x` the whole rows.
template <int kD>
__device__ __forceinline__ void write_support(const SelectParams& params, const std::uint8_t* staged,
                                              const unsigned short (*x)[kD + 8], std::int64_t first_row, int rows) {
  const int k = params.k;
  if (k % 8 == 0) {  // eight at a time
    const int pieces = k / 8;
    for (int i = threadIdx.x; i < rows * pieces; i += kSelectWarps * 32) {
      const int r = i / pieces, at = (i - r * pieces) * 8;
      const uint2 index = *reinterpret_cast<const uint2*>(staged + r * k + at);
      unsigned word[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const unsigned two = (j < 2 ? index.x : index.y) >> 16 * (j % 2);
        word[j] = x[r][two & 0xffu] | static_cast<unsigned>(x[r][two >> 8 & 0xffu]) << 16;
      }
      const std::int64_t to = (first_row + static_cast<std::int64_t>(r) * params.heads) * k + at;
      if (params.values != nullptr)
        *reinterpret_cast<uint4*>(static_cast<unsigned short*>(params.values) + to) = {word[0], word[1], word[2],
                                                                                       word[3]};
      if (params.indices != nullptr) *reinterpret_cast<uint2*>(params.indices + to) = index;
    }
    return;
  }
  for (int i = threadIdx.x; i < rows * k; i += kSelectWarps * 32) {
    const int r = i / k;
    const std::int64_t to = (first_row + static_cast<std::int64_t>(r) * params.heads) * k + (i - r * k);
    if (params.values != nullptr) static_cast<unsigned short*>(params.values)[to] = x[r][staged[i]];
    if (params.indices != nullptr) params.indices[to] = staged[i];
  }
}

/// Grid: x row blocks, y heads, z batch.
template <int kD, Selection kRule>
__global__ void __launch_bounds__(kSelectWarps * 32) select_kernel(const __grid_constant__ SelectParams params) {
  constexpr int kLanes = kD / 16;  // a row
  constexpr bool k2of4 = kRule == Selection::topk_2of4;
  constexpr int kMost = k2of4 ? kD / 2 : kD;
  __shared__ __align__(16) unsigned staging[k2of4 ? compressed_block_bytes(kD) / 4 : 4];
  __shared__ __align__(16) unsigned short row_values[kBlockRows][kD + 8];
  __shared__ __align__(16) std::uint8_t row_indices[kBlockRows * kMost];

  const int first = blockIdx.x * kBlockRows, head = blockIdx.y, batch = blockIdx.z;
  const int sub = threadIdx.x % kLanes;
  const bool wants_support = params.values != nullptr || params.indices != nullptr;

#pragma unroll
  for (int r = threadIdx.x / kLanes; r < kBlockRows; r += kSelectWarps * 32 / kLanes) {
    const int t = first + r;
    const bool inside = t < params.T;
    uint4 load[2] = {{0u, 0u, 0u, 0u}, {0u, 0u, 0u, 0u}};
    if (inside) {
      const auto* source =
          reinterpret_cast<const uint4*>(static_cast<const unsigned short*>(params.x) + batch * params.x_stride.batch +
                                         t * params.x_stride.token + head * params.x_stride.head + 16 * sub);
      load[0] = source[0];
      load[1] = source[1];
    }
    const unsigned word[8] = {load[0].x, load[0].y, load[0].z, load[0].w, load[1].x, load[1].y, load[1].z, load[1].w};
    unsigned magnitude[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) magnitude[j] = __vminu2(word[j] & 0x7fff7fffu, 0x7f807f80u);  // NaN counts as inf
    unsigned kept = 0xffffu;
    if constexpr (k2of4) kept = keep_two_of_four(magnitude);
    const unsigned chosen = support<kLanes>(magnitude, params.k, sub);
    if constexpr (k2of4)
      if (params.compressed != nullptr) stage_compressed<kD>(staging, word, kept, chosen, r, sub);
    if (wants_support) {
      auto* row = reinterpret_cast<uint4*>(&row_values[r][16 * sub]);
      row[0] = load[0];
      row[1] = load[1];
      std::uint8_t* next = row_indices + r * params.k + row_prefix<kLanes>(__popc(chosen), sub);
      for (unsigned rest = chosen; rest != 0; rest &= rest - 1)
        *next++ = static_cast<std::uint8_t>(16 * sub + __ffs(rest) - 1);
    }
    if (inside && params.dense != nullptr) {
      auto* target =
          reinterpret_cast<uint4*>(static_cast<unsigned short*>(params.dense) + batch * params.dense_stride.batch +
                                   t * params.dense_stride.token + head * params.dense_stride.head + 16 * sub);
      target[0] = {masked_word(word, chosen, 0), masked_word(word, chosen, 1), masked_word(word, chosen, 2),
                   masked_word(word, chosen, 3)};
      target[1] = {masked_word(word, chosen, 4), masked_word(word, chosen, 5), masked_word(word, chosen, 6),
                   masked_word(word, chosen, 7)};
    }
  }
  __syncthreads();
  if (wants_support) {
    const std::int64_t row = (static_cast<std::int64_t>(batch) * params.T + first) * params.heads + head;
    write_support<kD>(params, row_indices, row_values, row, min(kBlockRows, params.T - first));
  }
  if constexpr (k2of4) {
    if (params.compressed == nullptr) return;
    constexpr int kWords = compressed_block_bytes(kD) / 16;
    const std::int64_t block = (static_cast<std::int64_t>(batch) * gridDim.y + head) * gridDim.x + blockIdx.x;
    auto* target = static_cast<uint4*>(params.compressed) + block * kWords;
    for (int i = threadIdx.x; i < kWords; i += kSelectWarps * 32)
      target[i] = reinterpret_cast<const uint4*>(staging)[i];
  }
}

template <int kD>
void launch_rule(const SelectParams& params, dim3 grid, cudaStream_t stream) {
  if (params.rule == Selection::topk_2of4)
    select_kernel<kD, Selection::topk_2of4><<<grid, kSelectWarps * 32, 0, stream>>>(params);
  else
    select_kernel<kD, Selection::topk><<<grid, kSelectWarps * 32, 0, stream>>>(params);
}

}  // namespace

void select_features(const SelectParams& params, void* stream) {
  require(params.D == 64 || params.D == 128,
          "feature selection on the GPU is built for rows of 64 and 128 features, not {}", params.D);
  const int most = params.rule == Selection::topk_2of4 ? params.D / 2 : params.D;
  require(params.k >= 1 && params.k <= most, "cannot select {} of {} features; between 1 and {} are possible", params.k,
          params.D, most);
  require(params.compressed == nullptr || params.rule == Selection::topk_2of4,
          "the compressed operand needs the 2-of-4 rule");
  if (params.B == 0 || params.T == 0 || params.heads == 0) return;
  require(params.heads <= 65535 && params.B <= 65535, "feature selection: {} heads and batch {}; 65535 of each at most",
          params.heads, params.B);
  const dim3 grid(static_cast<unsigned>((params.T + kBlockRows - 1) / kBlockRows), static_cast<unsigned>(params.heads),
                  static_cast<unsigned>(params.B));
  if (params.D == 64)
    launch_rule<64>(params, grid, static_cast<cudaStream_t>(stream));
  else
    launch_rule<128>(params, grid, static_cast<cudaStream_t>(stream));
  const cudaError_t status = cudaGetLastError();
  require(status == cudaSuccess, "feature selection failed to launch: {}", cudaGetErrorString(status));
}

}  // namespace sfa::flash
