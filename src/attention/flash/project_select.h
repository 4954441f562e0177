// The packed projection of attention with the selection of features behind it, in one kernel for sm_90a: what a linear
// layer into [q heads | k heads | v heads] and then select_features (select24.h) leave, without the dense Q and K ever
// reaching memory.
//   y = x W^T + bias (f32 accumulation, rounded to bf16 once);   Q, K: features selected on the rounded y;   V: y
// Ties, NaN and the order of features are select24.h's. Deterministic: a row's bits depend on the row alone.
#pragma once

#include <cstdint>

#include "attention/flash/select24.h"

namespace sfa::flash {

/// All matrices are bf16 on the device, 16-byte aligned with strides that are multiples of 8 elements.
struct ProjectSelectParams {
  int B = 0, T = 0, I = 0;           ///< batch, tokens, features of x
  int H = 0, G = 0, D = 0, Dv = 0;   ///< query heads, key/value heads, features of q and k, of v
  const void* x = nullptr;           ///< [B T, I]
  const void* weight = nullptr;      ///< [(H + G) D + G Dv, I]
  const void* bias = nullptr;        ///< [(H + G) D + G Dv] or null
  int k_q = 0, k_k = 0;              ///< features a query / key row keeps
  Selection rule = Selection::topk;  ///< of queries; keys are always selected by topk
  void* q_values = nullptr;          ///< [B, T, H, k_q]
  std::uint8_t* q_indices = nullptr;
  void* k_values = nullptr;  ///< [B, T, G, k_k]
  std::uint8_t* k_indices = nullptr;
  /// Queries leave zero-filled ([B, T, H, D]; set `q_dense`) or, under topk_2of4, compressed as select24.h has it.
  void* q_dense = nullptr;
  void* q_compressed = nullptr;
  void* k_dense = nullptr;               ///< [B, T, G, D], zero-filled
  void* v = nullptr;                     ///< [B, T, G, Dv]
  Strides q_stride, k_stride, v_stride;  ///< heads are neighbours: stride.head is D, D, Dv
};

/// Whether there is a kernel: D 64 or 128, Dv a multiple of 64, k at most 16 (a sorting network's), I a multiple of 8
/// from 192 on.
bool project_select_supported(const ProjectSelectParams& params);

/// Throws Error on what has no kernel or a failed launch; `stream` is a cudaStream_t.
void project_select(const ProjectSelectParams& params, void* stream);

}  // namespace sfa::flash
