// Host side of the forward kernels: tensor maps, grid and launch. No allocation, no synchronisation.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention/flash/flash_params.h"
#include "attention/flash/forward_core.cuh"
#include "cuda/tensor_map.h"

namespace sfa::flash {

/// Keys and values of the heads that run at the same time should stay in L2 (50 MB on H100 and H200).
inline constexpr std::int64_t kGroupBytes = 32ll << 20;

struct MapExtent {
  int features;
  int tokens;
  int heads;
  int batch;
};

/// [B, T, heads, D] bf16 as boxes of 64 features x `rows` tokens.
inline CUtensorMap token_map(const void* data, const Strides& stride, const MapExtent& extent, int rows) {
  TensorMapSpec spec;
  spec.data = data;
  spec.rank = 4;
  const std::int64_t extents[4] = {extent.features, extent.tokens, extent.heads, extent.batch};
  const std::int64_t strides[4] = {1, stride.token, stride.head, stride.batch};
  for (int i = 0; i < 4; ++i) {
    spec.extent[i] = extents[i];
    spec.stride[i] = strides[i];
  }
  spec.box[0] = 64;
  spec.box[1] = rows;
  return make_tensor_map(spec);
}

template <class Config>
ForwardArgs forward_args(const ForwardParams& params) {
  const Shape& shape = params.shape;
  ForwardArgs args;
  args.shape = shape;
  args.ranges = params.ranges;
  args.scale = params.scale;
  args.scale_log2 = static_cast<float>(params.scale * 1.4426950408889634);
  args.lse = params.lse;
  args.q_compressed = params.q_compressed;
  args.tile_counter = params.tile_counter;
  args.row_tiles = (shape.Tq + Config::kRows - 1) / Config::kRows;
  args.tiles = args.row_tiles * shape.B * shape.H;
  const std::int64_t head_bytes = static_cast<std::int64_t>(shape.Tk) * (shape.Dqk + shape.Dv) * 2;
  const std::int64_t kv_heads = std::max<std::int64_t>(1, kGroupBytes / head_bytes);
  args.heads_a_group =
      static_cast<int>(std::min<std::int64_t>(kv_heads * (shape.H / shape.G), std::int64_t{shape.B} * shape.H));
  return args;
}

struct DeviceInfo {
  int multiprocessors = 0;
  cudaError_t status = cudaSuccess;
};

inline DeviceInfo current_device() {
  static thread_local int cached_device = -1;
  static thread_local DeviceInfo info;
  int device = 0;
  info.status = cudaGetDevice(&device);
  if (info.status == cudaSuccess && device != cached_device) {
    info.status = cudaDeviceGetAttribute(&info.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    cached_device = device;
  }
  return info;
}

template <class Config>
cudaError_t launch_forward(const ForwardParams& params, cudaStream_t stream) {
  const Shape& s = params.shape;
  const ForwardArgs args = forward_args<Config>(params);
  const CUtensorMap k_map = token_map(params.k, params.k_stride, {s.Dqk, s.Tk, s.G, s.B}, Config::kKeys);
  const CUtensorMap v_map = token_map(params.v, params.v_stride, {s.Dv, s.Tk, s.G, s.B}, Config::kKeys);
  const CUtensorMap out_map = token_map(params.out, params.out_stride, {s.Dv, s.Tq, s.H, s.B}, 64);
  const CUtensorMap q_map = params.q_compressed != nullptr
                                ? k_map  // unused by sparse24
                                : token_map(params.q, params.q_stride, {s.Dqk, s.Tq, s.H, s.B}, Config::kRows);
  const DeviceInfo device = current_device();
  if (device.status != cudaSuccess) return device.status;
  constexpr int kShared = sizeof(ForwardStorage<Config>);
  static_assert(kShared * Config::kBlocksPerSm + 1024 * Config::kBlocksPerSm <= 228 * 1024, "shared memory exceeded");
  const cudaError_t status =
      cudaFuncSetAttribute(forward_kernel<Config>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (status != cudaSuccess) return status;
  const int grid = std::min(args.tiles, device.multiprocessors * Config::kBlocksPerSm);
  forward_kernel<Config><<<grid, Config::kThreads, kShared, stream>>>(args, q_map, k_map, v_map, out_map);
  return cudaGetLastError();
}

}  // namespace sfa::flash
