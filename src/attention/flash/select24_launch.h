// Between the checks (host compiler) and the kernels (nvcc): returns a cudaError_t as int.
#pragma once

#include "attention/flash/select24.h"

namespace sfa::flash {

int launch_select(const SelectParams& params, void* stream);

}  // namespace sfa::flash
