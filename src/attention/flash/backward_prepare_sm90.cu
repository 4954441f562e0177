// First kernel of the backward. Computes, for every query row,
//   D_i = sum_c dO[i, c] O[i, c]          (f32, [B, H, padded Tq])
//   LSE_i / ln 2, with +inf for rows without keys and for padding, so that their P is 0 without a test
// and the tables of which tiles meet; zeroes the counters; writes dQ = 0 for tiles of rows that see no key, which the
// main kernel does not visit. A block takes 16 tokens with all their heads, 8 or 16 lanes a row, 16 bytes a lane.
// Further blocks write the full rows of sparse Q and K.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "attention/flash/backward_args.cuh"
#include "attention/flash/backward_expand.cuh"
#include "attention/flash/backward_ranges.cuh"
#include "cuda/sm90_store.cuh"

namespace sfa::flash {
namespace {

constexpr int kThreads = 256;
constexpr int kTokens = 16;  // of a block, with all their heads: whole 64-byte pieces of the [B, H, T] results
constexpr int kUnroll = 4;   // rows in flight a thread

__device__ QueryTile query_tile_at(const Shape& shape, const Ranges& ranges, int batch, int tile, int rows) {
  const int top = tile * rows;
  const KeySpan low = key_span(shape, ranges, batch, top);
  const KeySpan high = key_span(shape, ranges, batch, min(top + rows, shape.Tq) - 1);
  QueryTile t;
  t.first = low.lo / kBackwardHalf;
  t.last = high.hi > 0 ? (high.hi - 1) / kBackwardHalf : -1;
  t.full_first = (high.lo + kBackwardHalf - 1) / kBackwardHalf;
  t.full_end = low.hi / kBackwardHalf;
  return t;
}

/// First and last of a query tile never decrease along the tiles: two binary searches.
__device__ KeyTile key_tile_at(const Shape& shape, const Ranges& ranges, int batch, int key_tile, int query_tiles,
                               int rows) {
  int begin = 0, end = query_tiles;
  while (begin < end) {  // first query tile whose last key tile reaches key_tile
    const int mid = (begin + end) / 2;
    if (query_tile_at(shape, ranges, batch, mid, rows).last_tile() >= key_tile)
      end = mid;
    else
      begin = mid + 1;
  }
  KeyTile t;
  t.first = begin;
  end = query_tiles;
  while (begin < end) {  // behind the last query tile whose first key tile does not lie beyond key_tile
    const int mid = (begin + end) / 2;
    if (query_tile_at(shape, ranges, batch, mid, rows).first_tile() <= key_tile)
      begin = mid + 1;
    else
      end = mid;
  }
  t.last = begin - 1;
  return t;
}

__device__ __forceinline__ float dot8(const uint4& a, const uint4& b) {
  const unsigned x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum = fmaf(__uint_as_float(x[i] << 16), __uint_as_float(y[i] << 16), sum);
    sum = fmaf(__uint_as_float(x[i] & 0xffff0000u), __uint_as_float(y[i] & 0xffff0000u), sum);
  }
  return sum;
}

__device__ void prepare_tables(const BackwardArgs& args, int batch, int tile, int rows) {
  const int thread = threadIdx.x;
  if (thread == 0)
    args.workspace.query_tile[batch * args.query_tiles + tile] =
        query_tile_at(args.shape, args.ranges, batch, tile, rows);
  for (int n = tile + thread * args.query_tiles; n < args.key_tiles; n += kThreads * args.query_tiles)
    args.workspace.key_tile[batch * args.key_tiles + n] =
        key_tile_at(args.shape, args.ranges, batch, n, args.query_tiles, rows);
  if (thread == 0 && batch == 0 && tile == 0) *args.workspace.next_task = 0;
}

/// dQ = 0 for this block's tokens.
__device__ void zero_queries(const BackwardArgs& args, int batch, int first_token) {
  const Shape& shape = args.shape;
  auto* d_q = static_cast<__nv_bfloat16*>(args.d_q_pointer) + batch * args.d_q_stride.batch;
  const int chunks = shape.Dqk / 8, width = shape.H * chunks;
  for (int i = threadIdx.x; i < kTokens * width; i += kThreads) {
    const std::int64_t token = first_token + i / width;
    const int head = i % width / chunks, chunk = i % chunks;
    if (token < shape.Tq)
      *reinterpret_cast<uint4*>(d_q + token * args.d_q_stride.token + head * args.d_q_stride.head + chunk * 8) =
          make_uint4(0, 0, 0, 0);
  }
}

/// Block `block` of those that write the rows of Q and K.
__device__ __forceinline__ void expand_queries_and_keys(const BackwardArgs& args, int block, uint4* shared) {
  const Shape& s = args.shape;
  const std::int64_t query_rows = std::int64_t{s.B} * s.Tq * s.H, key_rows = std::int64_t{s.B} * s.Tk * s.G;
  const int query_blocks = static_cast<int>(expand_blocks(query_rows, s.Dqk));
  if (block < query_blocks)
    expand_any_rows<kThreads>({args.q_sparse, args.q_pointer, args.q_stride, s.Tq, s.H, s.Dqk}, query_rows, block,
                              shared);
  else
    expand_any_rows<kThreads>({args.k_sparse, args.k_pointer, args.k_stride, s.Tk, s.G, s.Dqk}, key_rows,
                              block - query_blocks, shared);
}

template <int kDv, bool kSparse>
__global__ void __launch_bounds__(kThreads)
    backward_prepare(const __grid_constant__ BackwardArgs args, int rows, int token_blocks) {
  extern __shared__ uint4 shared[];
  sm90::launch_dependents();
  if (kSparse && blockIdx.x >= token_blocks * args.shape.B)
    return expand_queries_and_keys(args, blockIdx.x - token_blocks * args.shape.B, shared);
  auto* sums = reinterpret_cast<float*>(shared);  // [H][kTokens]
  constexpr int kLanes = kDv / 8;                 // lanes a row of one head
  constexpr int kPass = kThreads / kLanes;
  const Shape& shape = args.shape;
  const int batch = blockIdx.x / token_blocks, first_token = (blockIdx.x - batch * token_blocks) * kTokens;
  const int tile = first_token / rows;
  const int lane = threadIdx.x % kLanes, slot = threadIdx.x / kLanes;
  const auto* out = static_cast<const __nv_bfloat16*>(args.out) + batch * args.out_stride.batch + lane * 8;
  const auto* d_out =
      static_cast<const __nv_bfloat16*>(args.d_out_pointer) + batch * args.d_out_stride.batch + lane * 8;

  // Row r of the block is token r / H, head r % H: neighbours in memory when the heads are packed.
  const int count = kTokens * shape.H;
  for (int base = 0; base < count; base += kUnroll * kPass) {
    uint4 o[kUnroll], g[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int r = base + u * kPass + slot, head = r % shape.H;
      const std::int64_t token = first_token + r / shape.H;
      o[u] = g[u] = make_uint4(0, 0, 0, 0);
      if (r < count && token < shape.Tq && lane * 8 < shape.Dv) {
        o[u] = __ldg(reinterpret_cast<const uint4*>(out + token * args.out_stride.token + head * args.out_stride.head));
        g[u] = __ldg(
            reinterpret_cast<const uint4*>(d_out + token * args.d_out_stride.token + head * args.d_out_stride.head));
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float sum = dot8(o[u], g[u]);
#pragma unroll
      for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      const int r = base + u * kPass + slot;
      if (lane == 0 && r < count) sums[r % shape.H * kTokens + r / shape.H] = sum;
    }
  }
  __syncthreads();

  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int head = i / kTokens, row = first_token + i % kTokens;
    const std::int64_t pair = static_cast<std::int64_t>(batch) * shape.H + head;
    float lse = row < shape.Tq ? args.lse[pair * shape.Tq + row] : -INFINITY;
    lse = lse == -INFINITY ? INFINITY : lse * 1.4426950408889634f;
    const std::int64_t at = pair * args.query_tiles * rows + row;
    args.workspace.lse2[at] = lse;
    args.workspace.delta[at] = sums[i];
  }
  if (first_token % rows == 0) {
    for (int head = threadIdx.x; head < shape.H; head += kThreads)
      args.workspace.turn[(static_cast<std::int64_t>(batch) * shape.H + head) * args.query_tiles + tile] = 0;
    prepare_tables(args, batch, tile, rows);
  }
  const QueryTile mine = query_tile_at(shape, args.ranges, batch, tile, rows);
  if (mine.first_tile() > mine.last_tile()) zero_queries(args, batch, first_token);
}

}  // namespace

cudaError_t launch_backward_prepare(const BackwardArgs& args, int rows, cudaStream_t stream) {
  const Shape& s = args.shape;
  const int token_blocks = args.query_tiles * rows / kTokens;
  std::int64_t blocks = std::int64_t{token_blocks} * s.B;
  std::size_t bytes = std::size_t{kTokens} * s.H * sizeof(float);
  if (args.sparse) {
    blocks +=
        expand_blocks(std::int64_t{s.B} * s.Tq * s.H, s.Dqk) + expand_blocks(std::int64_t{s.B} * s.Tk * s.G, s.Dqk);
    bytes = std::max(bytes, std::size_t{kExpandBytes});
  }
  const auto kernel = s.Dv <= 64 ? (args.sparse ? backward_prepare<64, true> : backward_prepare<64, false>)
                                 : (args.sparse ? backward_prepare<128, true> : backward_prepare<128, false>);
  kernel<<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(args, rows, token_blocks);
  return cudaGetLastError();
}

}  // namespace sfa::flash
