// Launch of one instance of the main backward kernel.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "attention/flash/backward_sm90.cuh"

namespace sfa::flash {

/// One block a multiprocessor, or a task if there are fewer. Starts while the preparing kernel is finishing.
template <class Tile>
cudaError_t launch_backward(const BackwardArgs& args, cudaStream_t stream) {
  auto* kernel = backward_kernel<Tile>;
  constexpr int kBytes = sizeof(BackwardShared<Tile>);
  static_assert(kBytes <= 227 * 1024, "a block of sm_90 has 227 KiB of shared memory");
  int device = 0, processors = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device))
    return error;
  if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes))
    return error;
  const int tasks = args.shape.B * args.shape.G * args.key_tiles;

  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(std::min(processors, tasks));
  config.blockDim = dim3(384);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace sfa::flash
