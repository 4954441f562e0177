// From the project's tensors and ranges to those of the CUDA kernels.
#pragma once

#include "attention/attention.h"
#include "attention/flash/flash_params.h"

namespace sfa::flash {

/// Of batch, token and head.
inline Strides strides_of(const Tensor& t) {
  return {t.stride[0], t.stride[1], t.stride[2]};
}

inline Ranges ranges_of(const sfa::Ranges& r) {
  return {.causal = r.causal,
          .window = static_cast<std::int32_t>(r.window),
          .query_offset = static_cast<std::int32_t>(r.query_offset),
          .first_key = r.first_key.empty() ? nullptr : r.first_key.as<std::int32_t>()};
}

}  // namespace sfa::flash
