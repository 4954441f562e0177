// Main backward kernel for Dqk = Dv = 128.
#include "attention/flash/backward_launch.cuh"

namespace sfa::flash {

cudaError_t launch_backward_d128(const BackwardArgs& args, cudaStream_t stream) {
  return launch_backward<BackwardTile<128, 128, backward_rows(128, 128), kBackwardFmaExponentials>>(args, stream);
}

}  // namespace sfa::flash
