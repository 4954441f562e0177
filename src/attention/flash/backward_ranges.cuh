// Which keys a query row sees, on the device (flash_params.h defines it).
#pragma once

#include <cstdint>

#include "attention/flash/flash_params.h"

namespace sfa::flash {

/// Keys [lo, hi) of a row; hi <= lo when it sees none. Neither ever decreases along the rows.
struct KeySpan {
  int lo, hi;
};
__device__ __forceinline__ KeySpan key_span(const Shape& shape, const Ranges& ranges, int batch, int row) {
  const int position = row + ranges.query_offset;
  KeySpan span{0, shape.Tk};
  if (ranges.causal) span.hi = min(max(position + 1, 0), shape.Tk);
  if (ranges.window > 0) span.lo = max(0, position + 1 - ranges.window);
  if (ranges.first_key != nullptr)
    span.lo =
        max(span.lo, __ldg(ranges.first_key + static_cast<std::int64_t>(batch) * shape.Tq + min(row, shape.Tq - 1)));
  return span;
}

}  // namespace sfa::flash
