// What the two kernels of the backward share: arguments, workspace, and which tiles meet.
#pragma once

#include <cuda.h>

#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention/flash/backward_tuning.h"
#include "attention/flash/flash_params.h"
#include "attention/flash/kept_features.h"

namespace sfa::flash {

/// Which keys the rows of one query tile see, in halves of a key tile (kBackwardHalf keys, a warpgroup's share): none
/// outside [first, last], every row all of [full_first, full_end).
struct alignas(16) QueryTile {
  int first, last;
  int full_first, full_end;

  /// Key tiles from which something is added to dQ; first_tile() > last_tile(): none.
  __host__ __device__ int first_tile() const { return first >> 1; }
  __host__ __device__ int last_tile() const { return last >> 1; }
};
/// Query tiles [first, last] that see some key of one key tile; first > last when there are none.
struct alignas(8) KeyTile {
  int first, last;
};

/// Floats of the piece of dQ that one warpgroup produces a step: 64 x 64, in fragment order.
inline constexpr int kDqPiece = 64 * 64;

/// Views into the caller's workspace. Tq is padded to whole query tiles.
struct BackwardWorkspace {
  float* lse2 = nullptr;            // [B, H, query_tiles * rows]: LSE / ln 2, +inf for rows without keys and padding
  float* delta = nullptr;           // [B, H, query_tiles * rows]: D_i, 0 for padding
  float* dq_sum = nullptr;          // [B, H, query_tiles, 2, kDqPiece]: dQ / scale over the key tiles so far
  int* turn = nullptr;              // [B, H, query_tiles]: key tiles that have been added to dq_sum
  QueryTile* query_tile = nullptr;  // [B, query_tiles]
  KeyTile* key_tile = nullptr;      // [B, key_tiles]
  int* next_task = nullptr;         // [1]
};

struct BackwardArgs {
  CUtensorMap q, k, v, d_out;  // boxes of one tile x 64 features
  CUtensorMap d_q, d_k, d_v;   // boxes of 64 rows x 64 features
  Shape shape;
  Ranges ranges;
  float scale = 0;
  float scale_log2 = 0;  // scale / ln 2
  BackwardWorkspace workspace;
  int query_tiles = 0;
  int key_tiles = 0;
  int heads_together = 0;
  bool sparse = false;  // a feature of q or k is selected where its bits are not zero; dQ and dK are zero elsewhere
  // for the expanding and the preparing kernel only
  KeptFeatures q_sparse, k_sparse;
  const void* out = nullptr;
  const void* d_out_pointer = nullptr;
  const float* lse = nullptr;
  void *q_pointer = nullptr, *k_pointer = nullptr, *d_q_pointer = nullptr;
  Strides q_stride, k_stride, out_stride, d_out_stride, d_q_stride;
};

/// Tensor maps, workspace and tables for tiles of `rows` query rows; params have been checked.
struct BackwardParams;
BackwardArgs backward_args(const BackwardParams& params, int rows);

/// Launchers of the expansion of sparse rows, of the preparing kernel and of one instance of the main kernel.
cudaError_t launch_backward_expand(const BackwardArgs& args, cudaStream_t stream);
cudaError_t launch_backward_prepare(const BackwardArgs& args, int rows, cudaStream_t stream);
using BackwardLauncher = cudaError_t (*)(const BackwardArgs& args, cudaStream_t stream);
cudaError_t launch_backward_d64(const BackwardArgs& args, cudaStream_t stream);
cudaError_t launch_backward_d128(const BackwardArgs& args, cudaStream_t stream);
cudaError_t launch_backward_d128_v64(const BackwardArgs& args, cudaStream_t stream);

}  // namespace sfa::flash
