// Attention of a few query rows over a KV cache on the GPU (compute capability 8.0 and newer): the entry that callers
// use. The mathematics is flash_params.h's; with sparse keys a score is the sum over a key's stored features,
//   s_ij = scale * sum_t value[j, t] q~_i[index[j, t]],   q~_i the query's row, zero outside its support.
// The cache is read once, split over the sequence; a second pass joins the parts by their log-sum-exp in a fixed order,
// so that the same inputs give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/flash/flash_params.h"

namespace sfa::flash {

/// Up to this many query rows a sequence a call is decoding.
inline constexpr int kDecodeRows = 16;

/// k stored features a row: values bf16, and which features they are. Queries: [B, Tq, H, k], ascending numbers. Keys:
/// [B, Tk, G, k], ascending numbers or masks (ops/select/support_format.h) of mask_bytes bytes.
struct SparseRows {
  const void* values = nullptr;
  const std::uint8_t* support = nullptr;  ///< u8 numbers, or masks
  int k = 0;
  Strides values_stride, support_stride;  ///< elements
  int mask_bytes = 0;                     ///< 0: numbers
  [[nodiscard]] constexpr int support_bytes() const { return mask_bytes > 0 ? mask_bytes : k; }
  [[nodiscard]] constexpr int row_bytes() const { return 2 * k + support_bytes(); }
};

/// q, k, v, out as in ForwardParams, all strides but the last multiples of 8 elements, of int8 rows 16. Sparse:
/// q_sparse and k_sparse instead of q and k; the rows of k_sparse of one sequence and head follow each other (token
/// strides k and support_bytes()) and the first is 16-byte aligned.
struct DecodeParams {
  Shape shape;
  Ranges ranges;
  float scale = 0;  ///< natural; positive
  const void* q = nullptr;
  const void* k = nullptr;        ///< bf16, or int8 when k_scale is set
  const void* k_scale = nullptr;  ///< bf16 [B, Tk, G]: K = k_scale * k; wants v_scale
  SparseRows q_sparse, k_sparse;
  const void* v = nullptr;        ///< bf16, or int8 when v_scale is set
  const void* v_scale = nullptr;  ///< bf16 [B, Tk, G]: V = v_scale * v
  void* out = nullptr;
  float* lse = nullptr;  ///< [B, H, Tq] contiguous, natural logarithm
  Strides q_stride, k_stride, v_stride, out_stride;
  Strides k_scale_stride, v_scale_stride;  ///< batch, token (1), head
  void* workspace = nullptr;               ///< decode_workspace_bytes(shape), 16-byte aligned
};

/// Head sizes are multiples of 8 up to 256. Lengths, batch and groups are free.
bool decode_supported(const Shape& shape);

/// Whether the kernel's buffers hold sparse keys of `row_bytes` bytes: tiles of 32 of them, beside V's, twice for each
/// warp of a block. True for fewer query rows or fewer bytes where it is for more.
bool decode_sparse_fits(const Shape& shape, int row_bytes);

/// Grows with every entry of `shape`.
std::size_t decode_workspace_bytes(const Shape& shape);

/// Launches two kernels on `stream` (a cudaStream_t). Allocates nothing, does not wait. Throws Error on a shape without
/// a kernel, misaligned memory or a failed launch.
void decode(const DecodeParams& params, void* stream);

}  // namespace sfa::flash
