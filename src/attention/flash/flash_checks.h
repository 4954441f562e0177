// What every entry of the tiled attention asks of its arguments before it launches.
#pragma once

#include <cstdint>

#include "attention/flash/flash_params.h"
#include "core/error.h"

namespace sfa::flash {

/// `op` names the entry in messages: "attention forward".
inline void require_shape(const char* op, const Shape& s) {
  require(s.G > 0 && s.H % s.G == 0, "{}: {} query heads cannot share {} key/value heads evenly", op, s.H, s.G);
  require(s.B >= 1 && s.Tq >= 1 && s.Tk >= 1, "{}: empty shape B={} Tq={} Tk={}", op, s.B, s.Tq, s.Tk);
}

inline void require_aligned(const char* op, const char* name, const void* data, const Strides& stride) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride.batch % 8 == 0 &&
                       stride.token % 8 == 0 && stride.head % 8 == 0;
  require(data != nullptr && aligned,
          "{}: {} must be set, 16-byte aligned and have strides that are multiples of 8 elements (batch {}, token {}, "
          "head {})",
          op, name, stride.batch, stride.token, stride.head);
}

}  // namespace sfa::flash
