// What the decoding kernels are given, and where a query row of a unit lies.
#pragma once

#include <cuda_runtime.h>

#include "attention/flash/decode.h"
#include "attention/flash/decode_parts.h"

namespace sfa::flash {

struct DecodeArgs {
  DecodeParams p;
  DecodeSplit split;
  int rows = 0;        ///< query rows that share a key head: H / G * Tq
  int row_blocks = 0;  ///< of at most kUnitRows
  int stages = 0;      ///< of a warp's ring
  float scale_log2 = 0;
  float* partial_out = nullptr;     ///< [slots][unit rows][Dv], not divided by the sum
  float2* partial_stats = nullptr;  ///< [slots][unit rows] maximum (base 2) and sum

  [[nodiscard]] constexpr int unit_rows() const { return rows < kUnitRows ? rows : kUnitRows; }
};

/// One unit: batch entry, key head, first row.
struct DecodeUnit {
  int b, g, first_row, rows;

  __device__ __forceinline__ DecodeUnit(const DecodeArgs& a, int unit) {
    const int block = unit % a.row_blocks, pair = unit / a.row_blocks;
    g = pair % a.p.shape.G;
    b = pair / a.p.shape.G;
    first_row = block * kUnitRows;
    rows = min(kUnitRows, a.rows - first_row);
  }
  /// Query heads of a token lie side by side.
  __device__ __forceinline__ int head(const DecodeArgs& a, int row) const {
    const int group = a.p.shape.H / a.p.shape.G;
    return g * group + (first_row + row) % group;
  }
  __device__ __forceinline__ int token(const DecodeArgs& a, int row) const {
    return (first_row + row) / (a.p.shape.H / a.p.shape.G);
  }
};

/// Keys [lo, hi) that query token i of batch entry b sees; lo <= hi.
__device__ __forceinline__ int2 decode_span(const DecodeArgs& a, int b, int i) {
  const Ranges& r = a.p.ranges;
  const int position = i + r.query_offset;
  const int hi = r.causal ? min(max(position + 1, 0), a.p.shape.Tk) : a.p.shape.Tk;
  int lo = r.window > 0 ? max(0, position + 1 - r.window) : 0;
  if (r.first_key != nullptr) lo = max(lo, r.first_key[static_cast<std::int64_t>(b) * a.p.shape.Tq + i]);
  return {min(lo, hi), hi};
}

/// Fills split and the workspace's places: tiles of `tokens` keys, `blocks` parts, or fewer that hold some tiles for
/// each of their `warps` warps.
void split_decode(DecodeArgs& args, int tokens, int warps, int blocks);

/// How many blocks of a kernel the current card holds at a time; asked for once.
struct Residency {
  int device = -1, bytes = 0, blocks = 0;
  cudaError_t find(const void* kernel, int threads, int shared_bytes);
};
/// Second pass (decode_join.cu).
cudaError_t decode_join(const DecodeArgs& args, cudaStream_t stream);
/// First and second pass.
cudaError_t decode_dense(const DecodeArgs& args, cudaStream_t stream);
cudaError_t decode_sparse(const DecodeArgs& args, cudaStream_t stream);

}  // namespace sfa::flash
