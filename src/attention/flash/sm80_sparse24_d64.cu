// One instance of the sm_80 forward on queries compressed 2 of 4; sm80_forward_tuning.h says why it looks as it does.
#include "attention/flash/sm80_forward_tuning.h"
#include "attention/flash/sm80_instances.h"

namespace sfa::flash {

int sm80_sparse24_d64(const ForwardParams& params, void* stream) {
  return static_cast<int>(launch_sm80_forward<Sm80Sparse24D64>(params, static_cast<cudaStream_t>(stream)));
}

}  // namespace sfa::flash
