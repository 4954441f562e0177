// QK-norm, rotary position embedding and the selection of features in one pass over the projected rows: what
// qk_norm_rope.h and then select24.h or select.h (topk_pairs) would leave, bit for bit. bf16 on the device.
#pragma once

#include <cstdint>

#include "attention/flash/select24.h"

namespace sfa::flash {

/// What becomes of the query heads or of the key heads.
struct RotatedHeads {
  int heads = 0, k = 0;
  Selection rule = Selection::topk;
  const void* weight = nullptr;     ///< [D]
  void* values = nullptr;           ///< [B, T, heads, k], in ascending order of feature
  std::uint8_t* indices = nullptr;  ///< [B, T, heads, k], ascending
  void* dense = nullptr;            ///< first head of [B, T, row]: zero outside the support; null = not wanted
  void* compressed = nullptr;       ///< queries under topk_2of4 only, as select24.h has it; null = not wanted
};

/// Packed rows [q heads | k heads | v heads] of `row` elements, one behind another.
struct RotateSelectParams {
  int B = 0, T = 0, D = 0, row = 0;
  RotatedHeads q, k;
  bool pairs = false;       ///< both take whole rotated pairs, `rule` aside; both k are even
  const void* x = nullptr;  ///< as projected; may be where q.dense and k.dense lie
  float eps = 0;
  double theta = 0;
  std::int64_t first_position = 0;
  float* rstd = nullptr;  ///< [B, T, q.heads + k.heads]; null = not wanted
  void* v = nullptr;      ///< [B, T, v_width]: the v heads are copied there
  int v_width = 0;
};

/// Whether there is a kernel: D of 64 or 128, row and v_width multiples of 8, everything aligned to 16 bytes.
bool rotate_select_supported(const RotateSelectParams& params);

/// Throws Error on a failed launch; `stream` is a cudaStream_t.
void rotate_select(const RotateSelectParams& params, void* stream);

}  // namespace sfa::flash
