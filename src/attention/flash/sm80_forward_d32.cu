// One instance of the sm_80 forward; sm80_forward_tuning.h says why it looks as it does.
#include "attention/flash/sm80_forward_tuning.h"
#include "attention/flash/sm80_instances.h"

namespace sfa::flash {

int sm80_forward_d32(const ForwardParams& params, void* stream) {
  return static_cast<int>(launch_sm80_forward<Sm80ForwardD32>(params, static_cast<cudaStream_t>(stream)));
}

}  // namespace sfa::flash
