// Main backward kernel for Dqk = 128, Dv = 64.
#include "attention/flash/backward_launch.cuh"

namespace sfa::flash {

cudaError_t launch_backward_d128_v64(const BackwardArgs& args, cudaStream_t stream) {
  return launch_backward<BackwardTile<128, 64, backward_rows(128, 64), kBackwardFmaExponentials>>(args, stream);
}

}  // namespace sfa::flash
