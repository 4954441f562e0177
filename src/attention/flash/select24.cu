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

/// Bit i: feature i's magnitude is not below the pattern.
__device__ __forceinline__ unsigned not_below(const unsigned (&magnitude)[8], unsigned pattern) {
  unsigned bits = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    bits |= (magnitude[j] & 0xffffu) - pattern < 0x8000u - pattern ? 1u << 2 * j : 0u;
    bits |= (magnitude[j] >> 16) - pattern < 0x8000u - pattern ? 2u << 2 * j : 0u;
  }
  return bits;
}

/// Features of this lane that belong to the row's support. Every lane of the warp takes part.
template <int kLanes>
__device__ __forceinline__ unsigned support(const unsigned (&magnitude)[8], int k, int sub) {
  __nv_bfloat162 best = as_bf162(magnitude[0]);
#pragma unroll
  for (int j = 1; j < 8; ++j) best = __hmax2(best, as_bf162(magnitude[j]));
  unsigned top =
      max(__bfloat16_as_ushort(__low2bfloat16(best)) & 0x7fffu, __bfloat16_as_ushort(__high2bfloat16(best)) & 0x7fffu);
#pragma unroll
  for (int d = 1; d < kLanes; d *= 2) top = max(top, __shfl_xor_sync(0xffffffffu, top, d));

  // Not below `low` are `found` >= k candidates, not below `high` fewer than k. Most rows have T within 3 octaves of
  // the top.
  unsigned low = 0, high = top + 1, trial = top > 384 ? top - 384 : 0;
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
    trial = (low + high) / 2;
  }
  unsigned chosen = not_below(magnitude, low);
  if (__any_sync(0xffffffffu, found != k)) {  // low is T itself, and some rows have more than k not below it
    const unsigned above = not_below(magnitude, low + 1);
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

template <int kD, Selection kRule>
__global__ void __launch_bounds__(kSelectWarps * 32) select_kernel(const SelectParams params) {
  constexpr int kLanes = kD / 16;  // a row
  constexpr bool k2of4 = kRule == Selection::topk_2of4;
  __shared__ __align__(16) unsigned staging[k2of4 ? compressed_block_bytes(kD) / 4 : 4];

  const int row_blocks = (params.T + kBlockRows - 1) / kBlockRows;
  const int pair = blockIdx.x / row_blocks, row_block = blockIdx.x - pair * row_blocks;
  const int batch = pair / params.heads, head = pair - batch * params.heads;
  const int lane = threadIdx.x % 32, sub = lane % kLanes;

#pragma unroll
  for (int r = threadIdx.x / kLanes; r < kBlockRows; r += kSelectWarps * 32 / kLanes) {
    const int t = row_block * kBlockRows + r;
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
    int position = row_prefix<kLanes>(__popc(chosen), sub);
    if constexpr (k2of4)
      if (params.compressed != nullptr) stage_compressed<kD>(staging, word, kept, chosen, r, sub);
    if (!inside) continue;  // whole rows leave together; nothing below is collective
    const std::int64_t row = (static_cast<std::int64_t>(batch) * params.T + t) * params.heads + head;
    if (params.values != nullptr || params.indices != nullptr) {
      auto* values = static_cast<unsigned short*>(params.values) + row * params.k;
      std::uint8_t* indices = params.indices + row * params.k;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if ((chosen >> i & 1u) == 0) continue;
        if (params.values != nullptr) values[position] = static_cast<unsigned short>(word[i / 2] >> 16 * (i % 2));
        if (params.indices != nullptr) indices[position] = static_cast<std::uint8_t>(16 * sub + i);
        ++position;
      }
    }
    if (params.dense != nullptr) {
      auto* target =
          reinterpret_cast<uint4*>(static_cast<unsigned short*>(params.dense) + batch * params.dense_stride.batch +
                                   t * params.dense_stride.token + head * params.dense_stride.head + 16 * sub);
      target[0] = {masked_word(word, chosen, 0), masked_word(word, chosen, 1), masked_word(word, chosen, 2),
                   masked_word(word, chosen, 3)};
      target[1] = {masked_word(word, chosen, 4), masked_word(word, chosen, 5), masked_word(word, chosen, 6),
                   masked_word(word, chosen, 7)};
    }
  }
  if constexpr (k2of4) {
    if (params.compressed == nullptr) return;
    __syncthreads();
    constexpr int kWords = compressed_block_bytes(kD) / 16;
    auto* target = static_cast<uint4*>(params.compressed) + static_cast<std::int64_t>(blockIdx.x) * kWords;
    for (int i = threadIdx.x; i < kWords; i += kSelectWarps * 32)
      target[i] = reinterpret_cast<const uint4*>(staging)[i];
  }
}

template <int kD>
void launch_rule(const SelectParams& params, int grid, cudaStream_t stream) {
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
  const int grid = params.B * params.heads * ((params.T + kBlockRows - 1) / kBlockRows);
  if (params.D == 64)
    launch_rule<64>(params, grid, static_cast<cudaStream_t>(stream));
  else
    launch_rule<128>(params, grid, static_cast<cudaStream_t>(stream));
  const cudaError_t status = cudaGetLastError();
  require(status == cudaSuccess, "feature selection failed to launch: {}", cudaGetErrorString(status));
}

}  // namespace sfa::flash
