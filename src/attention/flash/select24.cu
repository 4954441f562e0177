// Selection kernels: one block of threads takes 64 rows of one (batch, head), a lane four neighbouring features of a
// row.
//
// Every candidate gets a unique key, |x| above (D - 1 - index), so that "k largest, ties to the lowest index" is "keys
// not below the k-th largest"; that threshold is found bit by bit with ballots. Under topk_2of4 a lane's candidates are
// the two largest keys of its four: taking features greedily under the constraint yields exactly the k largest of
// those.
#include "attention/flash/select24.h"

#include <cuda_runtime.h>

#include "core/error.h"

namespace sfa::flash {
namespace {

constexpr int kSelectWarps = 8;
constexpr int kBlockRows = 64;

/// Where lane `group` (its four features) of block row `row` puts its word of two values, and its quad its metadata.
template <int kD>
struct CompressedLayout {
  static __device__ __forceinline__ int thread_of(int row, int q) { return (row / 16) * 32 + (row % 8) * 4 + q; }
  static __device__ __forceinline__ int value_word(int row, int group) {
    const int step = group / 8, inside = group % 8;
    return (step * 128 + thread_of(row, inside % 4)) * 4 + (inside / 4) * 2 + (row / 8) % 2;
  }
  /// In units of 16 bits; `group` is the first of four.
  static __device__ __forceinline__ int meta_half(int row, int group) {
    const int step = group / 8, half = group / 4 % 2;
    const int word = kD / 32 * 512 + step / 2 * 128 + thread_of(row, (step % 2) * 2 + half);
    return word * 2 + (row / 8) % 2;
  }
};

/// The k-th largest key among the kCandidates of each lane in `segment`, by bisection from the highest bit.
template <int kCandidates>
__device__ __forceinline__ unsigned kth_key(const unsigned (&key)[kCandidates], int k, unsigned segment, int bits) {
  unsigned threshold = 0;
  int found = -1;  // keys not below the threshold; exactly k ends the search
  for (int bit = bits - 1; bit >= 0; --bit) {
    const unsigned trial = threshold | (1u << bit);
    int count = 0;
#pragma unroll
    for (int i = 0; i < kCandidates; ++i) count += __popc(__ballot_sync(0xffffffffu, key[i] >= trial) & segment);
    if (count >= k) {
      threshold = trial;
      found = count;
    }
    if (__all_sync(0xffffffffu, found == k)) break;
  }
  return threshold;
}

template <int kD, Selection kRule>
__global__ void __launch_bounds__(kSelectWarps * 32) select_kernel(const SelectParams params) {
  constexpr int kLanes = kD / 4;  // lanes a row
  constexpr int kRowsAWarp = 32 / kLanes;
  constexpr int kIndexBits = kD == 64 ? 6 : 7;
  constexpr bool k2of4 = kRule == Selection::topk_2of4;
  constexpr int kCandidates = k2of4 ? 2 : 4;
  __shared__ __align__(16) unsigned staging[compressed_block_bytes(kD) / 4];

  const int row_blocks = (params.T + kBlockRows - 1) / kBlockRows;
  const int pair = blockIdx.x / row_blocks, row_block = blockIdx.x - pair * row_blocks;
  const int batch = pair / params.heads, head = pair - batch * params.heads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = lane % kLanes;
  const unsigned segment = kLanes == 32 ? 0xffffffffu : ((1u << kLanes) - 1) << (lane / kLanes * kLanes);
  const unsigned below = segment & ((1u << lane) - 1);
  const auto* x = static_cast<const unsigned short*>(params.x);

  for (int r = warp * kRowsAWarp + lane / kLanes; r < kBlockRows; r += kSelectWarps * kRowsAWarp) {
    const int t = row_block * kBlockRows + r;
    const bool inside = t < params.T;
    uint2 word = {0u, 0u};
    if (inside)
      word = *reinterpret_cast<const uint2*>(x + batch * params.x_stride.batch + t * params.x_stride.token +
                                             head * params.x_stride.head + 4 * group);
    const unsigned value[4] = {word.x & 0xffffu, word.x >> 16, word.y & 0xffffu, word.y >> 16};
    unsigned key4[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      key4[i] = (value[i] & 0x7fffu) << kIndexBits | static_cast<unsigned>(kD - 1 - 4 * group - i);

    unsigned key[kCandidates];
    int place[kCandidates];  // 0..3, ascending
    if constexpr (k2of4) {
      // The two best of four: drop the loser of each comparison count.
      int kept = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int better = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) better += key4[j] > key4[i];
        if (better < 2) kept |= 1 << i;
      }
      place[0] = __ffs(kept) - 1;
      place[1] = 31 - __clz(kept);
      key[0] = key[1] = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i == place[0]) key[0] = key4[i];
        if (i == place[1]) key[1] = key4[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        key[i] = key4[i];
        place[i] = i;
      }
    }
    const unsigned threshold = kth_key<kCandidates>(key, params.k, segment, 15 + kIndexBits);

    bool chosen[kCandidates];
    int position = 0;
    unsigned keep = 0;  // bit i: feature 4 group + i
#pragma unroll
    for (int i = 0; i < kCandidates; ++i) {
      chosen[i] = key[i] >= threshold;
      position += __popc(__ballot_sync(0xffffffffu, chosen[i]) & below);
      keep |= chosen[i] ? 1u << place[i] : 0u;
    }
    unsigned low = value[0], high = value[1];  // 2 of 4: the candidates' values
    if constexpr (k2of4) {
#pragma unroll
      for (int i = 1; i < 4; ++i) {
        if (i == place[0]) low = value[i];
        if (i == place[1]) high = value[i];
      }
      unsigned nibbles = static_cast<unsigned>(place[0] | place[1] << 2) << (4 * (group % 4));
      nibbles |= __shfl_xor_sync(0xffffffffu, nibbles, 1);
      nibbles |= __shfl_xor_sync(0xffffffffu, nibbles, 2);
      if (params.compressed != nullptr) {
        staging[CompressedLayout<kD>::value_word(r, group)] = (chosen[0] ? low : 0u) | (chosen[1] ? high << 16 : 0u);
        if (group % 4 == 0)
          reinterpret_cast<unsigned short*>(staging)[CompressedLayout<kD>::meta_half(r, group)] =
              static_cast<unsigned short>(nibbles);
      }
    }
    if (!inside) continue;  // whole segments leave together; the collectives above have run
    const std::int64_t row = (static_cast<std::int64_t>(batch) * params.T + t) * params.heads + head;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((keep >> i & 1u) == 0) continue;
      if (params.values != nullptr)
        static_cast<unsigned short*>(params.values)[row * params.k + position] = static_cast<unsigned short>(value[i]);
      if (params.indices != nullptr)
        params.indices[row * params.k + position] = static_cast<std::uint8_t>(4 * group + i);
      ++position;
    }
    if (params.dense != nullptr) {
      const unsigned a = (keep & 1 ? value[0] : 0u) | (keep & 2 ? value[1] << 16 : 0u);
      const unsigned b = (keep & 4 ? value[2] : 0u) | (keep & 8 ? value[3] << 16 : 0u);
      *reinterpret_cast<uint2*>(static_cast<unsigned short*>(params.dense) + batch * params.dense_stride.batch +
                                t * params.dense_stride.token + head * params.dense_stride.head + 4 * group) = {a, b};
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
