// One instance of the sm_80 backward; sm80_backward_tuning.h says why it looks as it does.
#include "attention/flash/sm80_backward_tuning.h"
#include "attention/flash/sm80_instances.h"

namespace sfa::flash {

int sm80_backward_d128_v64(const Sm80BackwardArgs& args, void* stream) {
  auto* queue = static_cast<cudaStream_t>(stream);
  const cudaError_t keys = launch_sm80_backward_keys<Sm80KeysD128V64>(args, queue);
  const cudaError_t queries = launch_sm80_backward_queries<Sm80QueriesD128V64>(args, queue);
  return static_cast<int>(keys != cudaSuccess ? keys : queries);
}

}  // namespace sfa::flash
