// Checks in front of the selection kernels.
#include "attention/flash/select24.h"

#include <cuda_runtime.h>

#include "attention/flash/select24_launch.h"
#include "core/error.h"

namespace sfa::flash {

std::int64_t compressed_block_bytes(int D) {
  return D / 32 * 128 * 16 + (D + 63) / 64 * 128 * 4;
}

void select_features(const SelectParams& params, void* stream) {
  require(params.D == 64 || params.D == 128,
          "feature selection on the GPU is built for rows of 64 and 128 features, not {}", params.D);
  const int most = params.rule == Selection::topk_2of4 ? params.D / 2 : params.D;
  require(params.k >= 1 && params.k <= most, "cannot select {} of {} features; between 1 and {} are possible", params.k,
          params.D, most);
  require(params.compressed == nullptr || params.rule == Selection::topk_2of4,
          "the compressed operand needs the 2-of-4 rule");
  if (params.B == 0 || params.T == 0 || params.heads == 0) return;
  const auto status = static_cast<cudaError_t>(launch_select(params, stream));
  require(status == cudaSuccess, "feature selection failed to launch: {}", cudaGetErrorString(status));
}

}  // namespace sfa::flash
