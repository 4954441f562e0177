// One instance of the forward core; forward_tuning.h says why it looks as it does.
#include "attention/flash/forward_instances.h"
#include "attention/flash/forward_launch.cuh"
#include "attention/flash/forward_tuning.h"

namespace sfa::flash {

int forward_sparse24_d64_short(const ForwardParams& params, void* stream) {
  return static_cast<int>(launch_forward<Sparse24D64Short>(params, static_cast<cudaStream_t>(stream)));
}

}  // namespace sfa::flash
