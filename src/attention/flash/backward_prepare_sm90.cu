// First kernel of the backward. Computes, for every query row,
//   D_i = sum_c dO[i, c] O[i, c]          (f32, [B, H, padded Tq])
//   LSE_i / ln 2, with +inf for rows without keys and for padding, so that their P is 0 without a test
// and the tables of which tiles meet; zeroes the counters; writes dQ = 0 for tiles of rows that see no key, which the
// main kernel does not visit. One block a (head, query tile, batch); 8 or 16 lanes a row, 16 bytes a lane.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "attention/flash/backward_args.cuh"
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

template <int kDv>
__global__ void __launch_bounds__(kThreads) backward_prepare(const __grid_constant__ BackwardArgs args, int rows) {
  extern __shared__ float sums[];  // [H][kTokens]
  sm90::launch_dependents();
  constexpr int kLanes = kDv / 8;  // lanes a row of one head
  constexpr int kPass = kThreads / kLanes;
  const Shape& shape = args.shape;
  const int first_token = blockIdx.x * kTokens, batch = blockIdx.y, tile = first_token / rows;
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
  if (args.sparse) sm90::wait_for_previous_kernel();  // the full rows: who waits for this kernel waits for them too
}

}  // namespace

cudaError_t launch_backward_prepare(const BackwardArgs& args, int rows, cudaStream_t stream) {
  const dim3 grid(args.query_tiles * rows / kTokens, args.shape.B);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = std::size_t{kTokens} * args.shape.H * sizeof(float);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = args.sparse ? 1 : 0;  // runs beside the expansion
  return cudaLaunchKernelEx(&config, args.shape.Dv <= 64 ? backward_prepare<64> : backward_prepare<128>, args, rows);
}

}  // namespace sfa::flash
