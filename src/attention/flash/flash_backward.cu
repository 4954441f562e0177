// Checks, workspace and tensor maps in front of the backward kernels.
#include "attention/flash/flash_backward.h"
#include "attention/flash/flash_checks.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "attention/flash/backward_args.cuh"
#include "core/error.h"
#include "cuda/tensor_map.h"

namespace sfa::flash {
namespace {

constexpr char kOp[] = "attention backward";

struct Instance {
  int rows = 0;
  BackwardLauncher launch = nullptr;
};

/// Sizes between two instances run on the next one, filled up with zeros by TMA.
Instance instance_for(const Shape& shape) {
  const auto fits = [&](int Dqk, int Dv) { return shape.Dqk <= Dqk && shape.Dv <= Dv; };
  if (shape.Dqk < 16 || shape.Dv < 16 || shape.Dqk % 16 != 0 || shape.Dv % 16 != 0) return {};
  if (fits(64, 64)) return {backward_rows(64, 64), launch_backward_d64};
  if (fits(128, 64)) return {backward_rows(128, 64), launch_backward_d128_v64};
  if (fits(128, 128)) return {backward_rows(128, 128), launch_backward_d128};
  return {};
}

int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

/// Hands out aligned pieces of the workspace; with a null base it only counts.
struct Carver {
  std::uintptr_t base;
  std::size_t used = 0;

  template <class T>
  T* take(std::int64_t count) {
    T* piece = reinterpret_cast<T*>(base + used);
    used += (static_cast<std::size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return piece;
  }
};

BackwardWorkspace carve(const Shape& shape, int rows, void* base, std::size_t* bytes) {
  Carver carver{reinterpret_cast<std::uintptr_t>(base)};
  const std::int64_t query_tiles = ceil_div(shape.Tq, rows);
  const std::int64_t key_tiles = ceil_div(shape.Tk, kBackwardKeys);
  const std::int64_t pairs = std::int64_t{shape.B} * shape.H;
  BackwardWorkspace w;
  w.lse2 = carver.take<float>(pairs * query_tiles * rows);
  w.delta = carver.take<float>(pairs * query_tiles * rows);
  w.dq_sum = carver.take<float>(pairs * query_tiles * kBackwardConsumers * kDqPiece);
  w.turn = carver.take<int>(pairs * query_tiles);
  w.query_tile = carver.take<QueryTile>(shape.B * query_tiles);
  w.key_tile = carver.take<KeyTile>(shape.B * key_tiles);
  w.next_task = carver.take<int>(1);
  if (bytes != nullptr) *bytes = carver.used;
  return w;
}

/// [B, T, heads, D] as boxes of 64 features x `rows` tokens.
CUtensorMap map_of(const void* data, const Strides& stride, int features, int tokens, int heads, int batch, int rows) {
  TensorMapSpec spec;
  spec.data = data;
  spec.rank = 4;
  const std::int64_t extent[4] = {features, tokens, heads, batch};
  const std::int64_t strides[4] = {1, stride.token, stride.head, stride.batch};
  std::copy_n(extent, 4, spec.extent);
  std::copy_n(strides, 4, spec.stride);
  spec.box[0] = 64;
  spec.box[1] = rows;
  return make_tensor_map(spec);
}

void check(const BackwardParams& p) {
  const Shape& s = p.shape;
  require_shape(kOp, s);
  require(p.scale > 0, "attention backward: the scale must be positive, not {}", p.scale);
  require(p.lse != nullptr, "attention backward: lse must be set");
  require(p.workspace != nullptr && reinterpret_cast<std::uintptr_t>(p.workspace) % 256 == 0,
          "attention backward: the workspace must be set and aligned to 256 bytes");
  const auto sparse = [&](const KeptFeatures& rows) {
    return rows.values != nullptr && rows.indices != nullptr && rows.k >= 1 && rows.k <= s.Dqk &&
           reinterpret_cast<std::uintptr_t>(rows.values) % 16 == 0 &&
           reinterpret_cast<std::uintptr_t>(rows.indices) % 8 == 0;
  };
  if (p.q_sparse.values != nullptr || p.k_sparse.values != nullptr)
    require(
        sparse(p.q_sparse) && sparse(p.k_sparse),
        "attention backward: sparse rows need values and indices of q and k, aligned to 16 and 8 bytes, and 1 to {} "
        "features a row, not {} and {}",
        s.Dqk, p.q_sparse.k, p.k_sparse.k);
  require_aligned(kOp, "q", p.q, p.q_stride);
  require_aligned(kOp, "k", p.k, p.k_stride);
  require_aligned(kOp, "v", p.v, p.v_stride);
  require_aligned(kOp, "out", p.out, p.out_stride);
  require_aligned(kOp, "d_out", p.d_out, p.d_out_stride);
  require_aligned(kOp, "d_q", p.d_q, p.d_q_stride);
  require_aligned(kOp, "d_k", p.d_k, p.d_k_stride);
  require_aligned(kOp, "d_v", p.d_v, p.d_v_stride);
}

/// How many key/value heads to interleave; backward_tuning.h says why.
int heads_together(const Shape& s) {
  const std::int64_t bytes = std::int64_t{s.Tq} * (s.H / s.G) * (2 * (s.Dqk + s.Dv) + 4 * s.Dqk);
  const std::int64_t least = std::clamp<std::int64_t>(kBackwardMinTokens / s.Tq, 1, kBackwardMinHeads);
  const std::int64_t fit = std::clamp<std::int64_t>(kBackwardFlightBytes / bytes, least, kBackwardMaxHeads);
  return static_cast<int>(std::min<std::int64_t>(fit, std::int64_t{s.B} * s.G));
}

}  // namespace

bool backward_supported(const Shape& shape) {
  return instance_for(shape).launch != nullptr;
}

std::size_t backward_workspace_bytes(const Shape& shape) {
  const Instance instance = instance_for(shape);
  if (instance.launch == nullptr) return 0;
  std::size_t bytes = 0;
  carve(shape, instance.rows, nullptr, &bytes);
  return bytes;
}

BackwardArgs backward_args(const BackwardParams& p, int rows) {
  const Shape& s = p.shape;
  BackwardArgs args;
  args.q = map_of(p.q, p.q_stride, s.Dqk, s.Tq, s.H, s.B, rows);
  args.k = map_of(p.k, p.k_stride, s.Dqk, s.Tk, s.G, s.B, kBackwardKeys);
  args.v = map_of(p.v, p.v_stride, s.Dv, s.Tk, s.G, s.B, kBackwardKeys);
  args.d_out = map_of(p.d_out, p.d_out_stride, s.Dv, s.Tq, s.H, s.B, rows);
  args.d_q = map_of(p.d_q, p.d_q_stride, s.Dqk, s.Tq, s.H, s.B, 64);
  args.d_k = map_of(p.d_k, p.d_k_stride, s.Dqk, s.Tk, s.G, s.B, 64);
  args.d_v = map_of(p.d_v, p.d_v_stride, s.Dv, s.Tk, s.G, s.B, 64);
  args.shape = s;
  args.ranges = p.ranges;
  args.scale = p.scale;
  args.scale_log2 = static_cast<float>(p.scale * 1.4426950408889634);
  args.workspace = carve(s, rows, p.workspace, nullptr);
  args.query_tiles = ceil_div(s.Tq, rows);
  args.key_tiles = ceil_div(s.Tk, kBackwardKeys);
  args.heads_together = p.heads_together > 0 ? std::min(p.heads_together, s.B * s.G) : heads_together(s);
  args.sparse = p.q_sparse.values != nullptr;
  args.q_sparse = p.q_sparse;
  args.k_sparse = p.k_sparse;
  args.q_pointer = p.q;
  args.k_pointer = p.k;
  args.q_stride = p.q_stride;
  args.k_stride = p.k_stride;
  args.out = p.out;
  args.d_out_pointer = p.d_out;
  args.lse = p.lse;
  args.d_q_pointer = p.d_q;
  args.out_stride = p.out_stride;
  args.d_out_stride = p.d_out_stride;
  args.d_q_stride = p.d_q_stride;
  return args;
}

void backward(const BackwardParams& params, void* stream) {
  const Instance instance = instance_for(params.shape);
  require(instance.launch != nullptr,
          "attention backward has no kernel for head sizes {} (q, k) and {} (v); use impl: reference", params.shape.Dqk,
          params.shape.Dv);
  check(params);
  const BackwardArgs args = backward_args(params, instance.rows);
  auto* queue = static_cast<cudaStream_t>(stream);
  cudaError_t status = args.sparse ? launch_backward_expand(args, queue) : cudaSuccess;
  if (status == cudaSuccess) status = launch_backward_prepare(args, instance.rows, queue);
  if (status == cudaSuccess) status = instance.launch(args, queue);
  require(status == cudaSuccess, "attention backward failed to launch: {}", cudaGetErrorString(status));
}

}  // namespace sfa::flash
