// What the device at hand can do at the most, measured in place: one large matrix product and one large copy. Random
// values: a card that is limited by power multiplies zeros faster.
#pragma once

#include "core/context.h"

namespace sfa {

struct Ceilings {
  double tflops = 0;       // of a square product in `dtype`
  double gb_per_sec = 0;   // of a copy, bytes read and bytes written together
  double card_tflops = 0;  // bf16 without sparsity, as the maker states it; 0 = not known, or another dtype
};

/// dtype: what the model multiplies. Takes memory for the time of the measurement, at the most `free_bytes`.
Ceilings measure_ceilings(Context& ctx, DType dtype, std::size_t free_bytes);

/// The maker's figure for a card of that name; 0 = not in the table.
double stated_bf16_tflops(const std::string& device_name);

}  // namespace sfa
