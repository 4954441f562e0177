// A warp takes one piece of work from the rows to the outputs, without meeting the others of its block: 32 / (D / 16)
// tokens of four heads at a time, all of queries or all of keys. Two layouts of the lanes alternate:
//   norm       D / 16 lanes a head of one token, head by head: a lane holds eight pairs, 16 bytes of either half, as
//              ops/qk_norm_rope does, with the angles of its pairs for all heads of the token
//   selection  D / 64 lanes a row of one token and head, all 16 or 32 rows at once (select_segment.cuh)
// Rows arrive by asynchronous copies where the norm puts its results, in place; while a group is worked on the next one
// is fetched into the L2 cache. Of a warp's tokens one half lies eight behind the other, since the compressed operand
// has rows r and r + 8 in one 16-byte piece. Whole pairs are chosen in the layout of the norm, where they lie in one
// lane, and need no second layout.
#include "attention/flash/rotate_select.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "attention/flash/rotate_select_warp.cuh"
#include "core/error.h"
#include "cuda/launch.h"

namespace sfa::flash {
namespace {

constexpr int kWarps = 4;
// Blocks an SM, and with them registers a thread: queries under topk_2of4 need more of these.
constexpr int blocks_per_sm(RotatedRule rule) {
  return rule == RotatedRule::two_of_four ? 5 : 6;
}
constexpr std::int64_t kMinBlocks = 4096;  // work is split among more blocks until there are so many

/// Grid: x tiles of tokens, y parts of a tile's groups of heads, z batch.
template <int kD, int kKeep, RotatedRule kRule>
__global__ void __launch_bounds__(kWarps * 32, blocks_per_sm(kRule))
    rotate_select_kernel(const __grid_constant__ RotateSelectParams p, const __grid_constant__ cuda_ops::Turns turns,
                         int bytes_of_warp) {
  extern __shared__ __align__(16) unsigned char memory[];
  using Warp = RotateSelectWarp<kD, kKeep, kRule>;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  auto* pairs = reinterpret_cast<unsigned*>(memory + kWarps * bytes_of_warp);
  if (threadIdx.x < 16) pairs[threadIdx.x] = stored_pair(threadIdx.x);
  __syncthreads();
  const int first = Warp::Tile::first_of(blockIdx.x * kWarps + static_cast<unsigned>(warp));
  Warp work{p, memory + warp * bytes_of_warp, pairs, lane, static_cast<int>(blockIdx.z), first};
  work.run(turns, static_cast<int>(blockIdx.y), static_cast<int>(gridDim.y));
}

template <int kD, int kKeep, RotatedRule kRule>
cudaError_t launch(const RotateSelectParams& p, cudaStream_t stream) {
  using Warp = RotateSelectWarp<kD, kKeep, kRule>;
  const auto kernel = rotate_select_kernel<kD, kKeep, kRule>;
  const int bytes_of_warp = Warp::bytes(std::max(p.q.k, p.k.k)), bytes = kWarps * bytes_of_warp + 64;
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  // The compressed operand covers whole blocks of 64 tokens.
  const std::int64_t T = p.q.compressed != nullptr ? ceil_div(p.T, 64) * 64 : p.T,
                     tiles = ceil_div(T, 16) * 16 / Warp::kTokens, blocks = ceil_div(tiles, kWarps);
  const std::int64_t parts = std::clamp<std::int64_t>(ceil_div(kMinBlocks, blocks * p.B), 1, Warp::groups(p));
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(parts), static_cast<unsigned>(p.B));
  kernel<<<grid, kWarps * 32, bytes, stream>>>(p, cuda_ops::turns_of(p.D, p.theta), bytes_of_warp);
  return cudaGetLastError();
}

template <int kD, RotatedRule kRule>
cudaError_t launch_for_k(const RotateSelectParams& p, cudaStream_t stream) {
  const int k = std::max(p.q.k, p.k.k);
  if constexpr (kRule != RotatedRule::pairs)
    if (k <= 8) return launch<kD, 8, kRule>(p, stream);
  static_assert(cuda_ops::kMaxSortedPairs == 8);
  return k <= 16 ? launch<kD, 16, kRule>(p, stream) : launch<kD, 0, kRule>(p, stream);
}

template <int kD>
cudaError_t launch_for(const RotateSelectParams& p, cudaStream_t stream) {
  if (p.pairs) return launch_for_k<kD, RotatedRule::pairs>(p, stream);
  if (p.q.rule == Selection::topk_2of4) return launch_for_k<kD, RotatedRule::two_of_four>(p, stream);
  return launch_for_k<kD, RotatedRule::topk>(p, stream);
}

bool aligned(const void* pointer) {
  return (reinterpret_cast<std::uintptr_t>(pointer) & 15u) == 0;
}

bool heads_supported(const RotatedHeads& heads, int D) {
  const int most = heads.rule == Selection::topk_2of4 ? D / 2 : D;
  return heads.heads >= 1 && heads.k >= 1 && heads.k <= most && aligned(heads.weight) && aligned(heads.values) &&
         aligned(heads.indices) && aligned(heads.dense) && aligned(heads.compressed);
}

}  // namespace

bool rotate_select_supported(const RotateSelectParams& p) {
  return selection_supported(p.D) && p.row % 8 == 0 && p.v_width % 8 == 0 && p.B <= 65535 &&
         heads_supported(p.q, p.D) && heads_supported(p.k, p.D) && aligned(p.x) && aligned(p.v);
}

void rotate_select(const RotateSelectParams& p, void* stream) {
  require(rotate_select_supported(p), "internal error: norm, rotation and selection in one pass: D {}, row {}", p.D,
          p.row);
  if (p.B == 0 || p.T == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  const cudaError_t status = p.D == 64 ? launch_for<64>(p, queue) : launch_for<128>(p, queue);
  require(status == cudaSuccess, "norm, rotation and selection failed to launch: {}", cudaGetErrorString(status));
}

}  // namespace sfa::flash
