// Top-k selection of features by |x| for SFA, in the formats that the tiled core reads.
//
// For each row x of [B, T, heads, D]: the support is chosen in order of falling |x|, ties to the lowest index, until it
// has k features: `topk` takes any, `topk_2of4` at most two of every four neighbours (features 4c .. 4c + 3), which is
// what 2:4 sparse tensor cores can multiply. k features are always chosen, zeros included; k <= D for topk, k <= D / 2
// for topk_2of4.
#pragma once

#include <cstdint>

#include "attention/flash/flash_params.h"

namespace sfa::flash {

enum class Selection : std::uint8_t { topk, topk_2of4 };

/// Outputs may be null. x, values, dense are bf16 on the device.
struct SelectParams {
  int B = 0, T = 0, heads = 0, D = 0, k = 0;
  Selection rule = Selection::topk;
  const void* x = nullptr;
  Strides x_stride;
  void* values = nullptr;           ///< [B, T, heads, k], in ascending order of feature
  std::uint8_t* indices = nullptr;  ///< [B, T, heads, k], ascending
  void* dense = nullptr;            ///< x with every other feature zeroed
  Strides dense_stride;
  void* compressed = nullptr;  ///< topk_2of4 only: [B, heads, ceil(T / 64)] blocks of compressed_block_bytes(D)
};

/// Bytes of 64 query rows compressed 2 of 4. The block holds, for each step of 32 features and each thread of a
/// warpgroup, the four words of values that it feeds to the sparse product, then for each pair of steps and each thread
/// one word of metadata (threads 4 i and 4 i + 1 of a quad: even step, the others: odd step); cuda/sm90_wgmma.cuh has
/// the fragments.
constexpr int compressed_block_bytes(int D) {
  return D / 32 * 128 * 16 + (D + 63) / 64 * 128 * 4;
}

/// Whether rows of D features have a kernel.
constexpr bool selection_supported(int D) {
  return D == 64 || D == 128;
}

/// Throws Error on a shape that has no kernel or a failed launch; `stream` is a cudaStream_t.
void select_features(const SelectParams& params, void* stream);

/// Rows [B, T, width] bf16 that move to a place of their own; strides of tokens and batch entries in elements. All of
/// them, and width, are multiples of 8.
struct RowCopy {
  const void* from = nullptr;  ///< null: nothing to copy
  void* to = nullptr;
  int width = 0;
  Strides from_stride, to_stride;  ///< the heads' strides are not used
};

/// Queries and keys of the same B, T and D in one launch; `values` are copied beside them.
void select_features(const SelectParams& queries, const SelectParams& keys, const RowCopy& values, void* stream);

}  // namespace sfa::flash
