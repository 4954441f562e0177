// Main backward kernel for Dqk = Dv = 64.
#include "attention/flash/backward_launch.cuh"

namespace sfa::flash {

cudaError_t launch_backward_d64(const BackwardArgs& args, cudaStream_t stream) {
  return launch_backward<BackwardTile<64, 64, backward_rows(64, 64), kBackwardFmaExponentials>>(args, stream);
}

}  // namespace sfa::flash
