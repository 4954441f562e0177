// Tile sizes and thresholds of the CPU kernels, each with the measurement that chose it (docs/kernels_cpu.md has the
// tables).
#pragma once

namespace sfa::flash_cpu {

/// Keys a tile. A packed tile of K and one of V are 32 KiB each at 128 features; with 32 keys everything was 10 %
/// slower.
inline constexpr int kTileKeys = 64;
/// Queries a tile. Forward, 4096 keys of 128 features: 256 instead of 128 takes 5 % off (tiles of keys are packed half
/// as often), 512 another 3 %, but then a tile no longer fits in a second-level cache of 1 MiB.
inline constexpr int kForwardQueries = 256;
inline constexpr int kBackwardQueries = 64;
/// Up to so many queries are served straight from unpacked keys (decode).
inline constexpr int kDecodeQueries = 4;
/// Keys a decode unit at least, and units a head at most.
inline constexpr int kDecodeKeys = 256;
inline constexpr int kDecodeParts = 64;
/// Backward: the key tiles of a head are dealt to several units while there are fewer than so many, up to so many
/// parts.
inline constexpr int kBackwardUnits = 32;
inline constexpr int kBackwardParts = 8;
/// A tile is served by lists of overlapping pairs when the previous one had at most this share of them, and a row when
/// it has.
inline constexpr float kListShare = 0.62f;
inline constexpr float kListShareRow = 0.8f;

}  // namespace sfa::flash_cpu
