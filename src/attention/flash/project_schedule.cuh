// Arguments and tiles of the projection with selection: which rows and columns a block of a cluster works on, in what
// order.
#pragma once

#include <cstdint>

namespace sfa::flash {

inline constexpr int kProjectRows = 128;     // tokens of a tile
inline constexpr int kProjectColumns = 256;  // output features of a tile

/// What the selection of queries or of keys writes beside the rows.
struct SelectedHeads {
  unsigned short* values;
  std::uint8_t* indices;
  int heads, k;
};

/// The columns of the projection in three sections: queries, keys, values. A tile lies in one of them.
struct ProjectArgs {
  SelectedHeads selected[2];
  unsigned char* compressed;  // queries', or null: they leave as rows
  const unsigned short* bias;
  bool two_of_four;
  int begin[3], width[3], tiles[3];  // first column in the packed row, columns, tiles
  int T;                             // tokens of an entry as it is tiled: of all entries at once where they can be
  int entry_tokens;                  // tokens of an entry with its padding to 64: place of a compressed block
  int row_units;                     // row tiles a cluster takes at once
  int units_an_entry;
  int k_blocks;  // of 64 features of x
  int columns, columns_a_group;
  int row;  // columns of the packed row
};

struct ProjectTile {
  int entry, token;  // this block's first row
  int section, column;
};

/// Tiles of neighbouring columns run at the same time on the same rows: x comes from memory once a group of columns,
/// whose weights stay in L2.
template <int kCluster>
__device__ __forceinline__ ProjectTile project_tile(const ProjectArgs& args, int index, int rank) {
  const int group_tiles = args.row_units * args.columns_a_group;
  const int group = index / group_tiles, rest = index - group * group_tiles;
  const int width = min(args.columns_a_group, args.columns - group * args.columns_a_group);
  const int unit = rest / width;
  int tile = group * args.columns_a_group + rest - unit * width, section = 0;
  while (section < 2 && tile >= args.tiles[section]) tile -= args.tiles[section++];
  const int entry = unit / args.units_an_entry;
  return {entry, ((unit - entry * args.units_an_entry) * kCluster + rank) * kProjectRows, section,
          tile * kProjectColumns};
}

}  // namespace sfa::flash
