// How decoding is cut into parts. A unit is one sequence, one key/value head and up to kUnitRows query rows that share
// it; its keys are cut into tiles. The tiles of all units in a row are dealt to `parts` blocks in equal contiguous
// stretches, so that every block reads the same number of bytes whatever batch and length are. A stretch that crosses
// into another unit leaves a partial result for each: part i and unit u have slot i + u, since along the row either or
// both grow by one from one partial result to the next.
#pragma once

#include <cstdint>

namespace sfa::flash {

/// Parts of a call at most, whatever the card: what the workspace is planned for.
inline constexpr int kDecodeParts = 512;
/// Query rows of a unit at most: one or two tiles of eight columns of the tensor product.
inline constexpr int kUnitRows = 16;

struct DecodeSplit {
  int units = 0;       ///< B * G * row blocks
  int tiles = 0;       ///< a unit, 0: no key is visible
  int first_tile = 0;  ///< tiles before it are seen by no row
  int parts = 0;

  [[nodiscard]] constexpr std::int64_t all() const { return std::int64_t{units} * tiles; }
  /// First tile of a part in the row of all tiles.
  [[nodiscard]] constexpr std::int64_t begin(int part) const { return part * all() / parts; }
  /// The part that holds a tile.
  [[nodiscard]] constexpr int part_of(std::int64_t tile) const {
    return static_cast<int>(((tile + 1) * parts - 1) / all());
  }
};

}  // namespace sfa::flash
