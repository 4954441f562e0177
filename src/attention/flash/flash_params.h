// Arguments of the tiled attention core: what forward and backward kernels, launchers and callers share.
//
//   O[b, i, h, :] = sum_j P_ij V[b, j, g, :],   P_ij = exp(scale q_i.k_j - LSE_i),   g = h / (H / G)
//   LSE[b, h, i]  = ln sum_j exp(scale q_i.k_j)                                      j over the keys that row i sees
//
// Row i stands at position p = i + query_offset, counted from key 0, and sees keys [lo_i, hi_i):
//   hi_i = causal ? clamp(p + 1, 0, Tk) : Tk
//   lo_i = max(0, window > 0 ? p + 1 - window : 0, first_key ? first_key[b Tq + i] : 0)
// A row that sees no key gets O = 0 and LSE = -inf.
#pragma once

#include <cstdint>

namespace sfa::flash {

/// Elements between neighbours along batch, token and head; the last dimension has stride 1. All but the last are
/// multiples of 8 elements (16 bytes), as is every address: tensor TMA asks for it.
struct Strides {
  std::int64_t batch = 0;
  std::int64_t token = 0;
  std::int64_t head = 0;
};

/// Which keys a query row sees; see the head of the file.
struct Ranges {
  bool causal = true;
  std::int32_t window = 0;                  ///< keys a row sees at most, itself included; 0: no limit
  std::int32_t query_offset = 0;            ///< position of query row 0 among the keys; any sign
  const std::int32_t* first_key = nullptr;  ///< device, [B, Tq], non-decreasing along a row's sequence; or null
};

/// Problem size. H % G == 0.
struct Shape {
  int B = 0;    ///< batch
  int Tq = 0;   ///< query rows
  int Tk = 0;   ///< keys
  int H = 0;    ///< query heads
  int G = 0;    ///< key/value heads
  int Dqk = 0;  ///< features of q and k
  int Dv = 0;   ///< features of v and out
};

/// q, k, v, out are bf16 on the device: [B, Tq, H, Dqk], [B, Tk, G, Dqk], [B, Tk, G, Dv], [B, Tq, H, Dv].
struct ForwardParams {
  Shape shape;
  Ranges ranges;
  float scale = 0;  ///< natural: softmax(scale q.k); positive
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  void* out = nullptr;
  float* lse = nullptr;  ///< [B, H, Tq] contiguous, natural logarithm
  Strides q_stride, k_stride, v_stride, out_stride;
  /// sparse24 on sm_90a only, instead of q: rows compressed 2 of 4, [B, H, ceil(Tq / 64)] blocks of
  /// compressed_block_bytes(Dqk) bytes (select24.h).
  const void* q_compressed = nullptr;
  /// Two int32 on the device, zero before the first launch and left zero by every launch, for dynamic scheduling;
  /// launches that may run at the same time need their own. Null: tiles are dealt out in a fixed order.
  std::int32_t* tile_counter = nullptr;
};

}  // namespace sfa::flash
