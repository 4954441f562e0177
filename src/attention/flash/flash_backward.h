// Backward of the tiled attention core on sm_90a, in bf16 with f32 sums. Everything is recomputed from q, k, v and the
// log-sum-exp that the forward saved; no Tq x Tk matrix reaches memory.
//
//   S = scale Q K^T,  P = exp(S - LSE),  dP = dO V^T,  D_i = sum_c dO[i, c] O[i, c],  dS = P * (dP - D)
//   dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO      dK and dV summed over the query heads of a group
//
// Deterministic: two runs give the same bits, whatever the scheduling (attention/flash/backward_sm90.cuh says how).
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/flash/flash_params.h"
#include "attention/flash/kept_features.h"

namespace sfa::flash {

/// Tensors as in ForwardParams. d_q, d_k and d_v are overwritten; every byte of them that belongs to a row is written.
/// With q_sparse and k_sparse the rows of q and k are made of them first, into the memory at q and k, and d_q and d_k
/// are exact zeros outside the features that a row keeps.
struct BackwardParams {
  Shape shape;
  Ranges ranges;
  float scale = 0;    ///< positive
  void* q = nullptr;  ///< read; with q_sparse written before
  void* k = nullptr;
  KeptFeatures q_sparse, k_sparse;  ///< both or neither; kernels for sm_90a only
  const void* v = nullptr;
  const void* out = nullptr;
  const void* d_out = nullptr;
  const float* lse = nullptr;  ///< [B, H, Tq] contiguous, natural logarithm; -inf marks rows without keys
  void* d_q = nullptr;
  void* d_k = nullptr;
  void* d_v = nullptr;
  Strides q_stride, k_stride, v_stride, out_stride, d_out_stride, d_q_stride, d_k_stride, d_v_stride;
  void* workspace = nullptr;  ///< backward_workspace_bytes(), aligned to 256 bytes; contents do not matter
  int heads_together = 0;     ///< key/value heads in flight at once; 0: chosen from the shape
};

/// True when there are kernels for the shape (on a card of compute capability 9.0).
bool backward_supported(const Shape& shape);

/// Bytes of scratch that one call needs.
std::size_t backward_workspace_bytes(const Shape& shape);

/// Enqueues the work on `stream` (a cudaStream_t): no allocation, no synchronisation, safe inside graph capture.
/// Throws Error when the shape is not served, or a pointer or stride is missing or misaligned.
void backward(const BackwardParams& params, void* stream);

}  // namespace sfa::flash
