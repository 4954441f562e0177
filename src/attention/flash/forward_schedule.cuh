// Which tile a block works on next, and which keys a row sees. A tile is kRows query rows of one (batch, head).
//
// Order of tiles: (batch, head) pairs are taken in groups whose keys and values fit in L2 together; inside a group the
// tiles with most keys come first, so that the short ones fill the gaps at the end.
#pragma once

#include <cstdint>

#include "attention/flash/flash_params.h"

namespace sfa::flash {

/// What the kernel knows of the problem besides tensor maps; passed by value.
struct ForwardArgs {
  Shape shape;
  Ranges ranges;
  float scale = 0;
  float scale_log2 = 0;  // scale / ln 2
  float* lse = nullptr;
  const void* q_compressed = nullptr;
  std::int32_t* tile_counter = nullptr;
  int row_tiles = 0;      // tiles a (batch, head)
  int tiles = 0;          // in all
  int heads_a_group = 0;  // (batch, head) pairs that share L2
};

struct Tile {
  int batch;
  int head;
  int row;  // first query row
};

template <int kRows>
__device__ __forceinline__ Tile tile_at(const ForwardArgs& args, int index) {
  const int group_tiles = args.heads_a_group * args.row_tiles;
  const int group = index / group_tiles;
  const int inside = index - group * group_tiles;
  const int first_pair = group * args.heads_a_group;
  const int pairs = min(args.heads_a_group, args.shape.B * args.shape.H - first_pair);
  const int rank = inside / pairs;
  const int pair = first_pair + inside - rank * pairs;
  const int batch = pair / args.shape.H;
  return {batch, pair - batch * args.shape.H, (args.row_tiles - 1 - rank) * kRows};
}

/// Tile number `round` of this block when tiles are dealt out in a fixed order, back and forth so that no block always
/// gets the longer one; -1 at the end.
__device__ __forceinline__ int dealt_tile(const ForwardArgs& args, int round) {
  const int column = (round & 1) ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  const int index = round * gridDim.x + column;
  return index < args.tiles ? index : -1;
}

/// Keys [lo, hi) of a row; hi <= lo when it sees none.
struct KeyRange {
  int lo;
  int hi;
};

__device__ __forceinline__ KeyRange key_range(const ForwardArgs& args, int batch, int row) {
  const Ranges& r = args.ranges;
  const int position = row + r.query_offset;
  KeyRange range{0, args.shape.Tk};
  if (r.causal) range.hi = min(max(position + 1, 0), args.shape.Tk);
  if (r.window > 0) range.lo = max(0, position + 1 - r.window);
  if (r.first_key != nullptr)
    range.lo = max(range.lo,
                   __ldg(r.first_key + static_cast<std::int64_t>(batch) * args.shape.Tq + min(row, args.shape.Tq - 1)));
  return range;
}

/// Key blocks of kKeys keys that rows [first_row, last_row] need, [begin, end); lo and hi never decrease along the
/// rows.
struct BlockRange {
  int begin;
  int end;
};

template <int kKeys>
__device__ __forceinline__ BlockRange block_range(int lo, int hi) {
  const int begin = lo / kKeys;
  return {begin, max(begin, (hi + kKeys - 1) / kKeys)};
}

}  // namespace sfa::flash
