// Checks, workspace and dispatch in front of the sm_80 backward kernels, and the first of them: for every query row
//   D_i = sum_c dO[i, c] O[i, c]   and   LSE_i / ln 2, +inf for rows without keys and for padding
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <climits>

#include "attention/flash/flash_checks.h"
#include "attention/flash/flash_sm80.h"
#include "attention/flash/sm80_backward.cuh"
#include "attention/flash/sm80_instances.h"
#include "core/error.h"

namespace sfa::flash {
namespace {

constexpr char kOp[] = "attention backward";

struct Instance {
  int Dqk, Dv;
  Sm80BackwardLauncher launch;
};

/// In the order of what they cost: the first that has room for both sizes is taken.
constexpr Instance kInstances[] = {
    {32, 32, sm80_backward_d32},       {32, 64, sm80_backward_d32_v64},   {64, 64, sm80_backward_d64},
    {64, 128, sm80_backward_d64_v128}, {128, 64, sm80_backward_d128_v64}, {96, 96, sm80_backward_d96},
    {128, 128, sm80_backward_d128},    {192, 192, sm80_backward_d192},    {256, 256, sm80_backward_d256},
};

const Instance& instance_for(const Shape& shape) {
  for (const Instance& instance : kInstances)
    if (shape.Dqk <= instance.Dqk && shape.Dv <= instance.Dv) return instance;
  fail("internal error: no sm_80 attention backward for head sizes {} and {}", shape.Dqk, shape.Dv);
}

int padded_rows(const Shape& s) {
  return (s.Tq + kSm80PaddedRows - 1) / kSm80PaddedRows * kSm80PaddedRows;
}

/// Bytes of LSE or of D.
std::size_t vector_bytes(const Shape& s) {
  return (static_cast<std::size_t>(s.B) * s.H * padded_rows(s) * sizeof(float) + 255) / 256 * 256;
}

void check(const BackwardParams& p) {
  const Shape& s = p.shape;
  require(sm80_supported(s),
          "attention backward has no kernel for head sizes {} (q, k) and {} (v): multiples of 16 up to 256 have one",
          s.Dqk, s.Dv);
  require_shape(kOp, s);
  require((std::int64_t{std::max(s.Tq, s.Tk)} + 31) / 32 * s.B * s.H <= INT_MAX,
          "attention backward: {} rows of {} heads and {} sequences are too many for one launch", std::max(s.Tq, s.Tk),
          s.H, s.B);
  require(p.scale > 0, "attention backward: the scale must be positive, not {}", p.scale);
  require(p.q_sparse.values == nullptr && p.k_sparse.values == nullptr,
          "attention backward: only the kernels for sm_90a take sparse rows");
  require(p.lse != nullptr, "attention backward: lse must be set");
  require(p.workspace != nullptr && reinterpret_cast<std::uintptr_t>(p.workspace) % 256 == 0,
          "attention backward: the workspace must be set and aligned to 256 bytes");
  require_aligned(kOp, "q", p.q, p.q_stride);
  require_aligned(kOp, "k", p.k, p.k_stride);
  require_aligned(kOp, "v", p.v, p.v_stride);
  require_aligned(kOp, "out", p.out, p.out_stride);
  require_aligned(kOp, "d_out", p.d_out, p.d_out_stride);
  require_aligned(kOp, "d_q", p.d_q, p.d_q_stride);
  require_aligned(kOp, "d_k", p.d_k, p.d_k_stride);
  require_aligned(kOp, "d_v", p.d_v, p.d_v_stride);
}

constexpr int kPrepareThreads = 256;
constexpr int kLanes = 8;  // that share a row, 16 bytes a lane at a time

struct PrepareArgs {
  Shape shape;
  const void *out, *d_out;
  Strides out_stride, d_out_stride;
  const float* lse;
  float *lse2, *delta;
  int padded_rows;
};

__device__ __forceinline__ float dot8(const uint4& a, const uint4& b) {
  const unsigned x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum = fmaf(__uint_as_float(x[i] << 16), __uint_as_float(y[i] << 16), sum);
    sum = fmaf(__uint_as_float(x[i] & 0xffff0000u), __uint_as_float(y[i] & 0xffff0000u), sum);
  }
  return sum;
}

/// Row r of the grid is (batch, padded token, head), heads fastest: neighbours in memory when the heads are packed.
__global__ void __launch_bounds__(kPrepareThreads) sm80_backward_prepare(const __grid_constant__ PrepareArgs args) {
  const Shape& s = args.shape;
  const std::int64_t r = (static_cast<std::int64_t>(blockIdx.x) * kPrepareThreads + threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int head = static_cast<int>(r % s.H), token = static_cast<int>(r / s.H % args.padded_rows);
  const std::int64_t batch = r / s.H / args.padded_rows;
  const bool exists = batch < s.B && token < s.Tq;
  float sum = 0;
  if (exists) {
    const auto* out = static_cast<const __nv_bfloat16*>(args.out) + batch * args.out_stride.batch +
                      token * args.out_stride.token + head * args.out_stride.head;
    const auto* d_out = static_cast<const __nv_bfloat16*>(args.d_out) + batch * args.d_out_stride.batch +
                        token * args.d_out_stride.token + head * args.d_out_stride.head;
    for (int c = lane * 8; c < s.Dv; c += kLanes * 8)
      sum += dot8(__ldg(reinterpret_cast<const uint4*>(out + c)), __ldg(reinterpret_cast<const uint4*>(d_out + c)));
  }
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (lane != 0 || batch >= s.B) return;
  const std::int64_t pair = batch * s.H + head, at = pair * args.padded_rows + token;
  const float lse = exists ? args.lse[pair * s.Tq + token] : -INFINITY;
  args.lse2[at] = lse == -INFINITY ? INFINITY : lse * 1.4426950408889634f;
  args.delta[at] = sum;
}

}  // namespace

std::size_t sm80_backward_workspace_bytes(const Shape& shape) {
  return 2 * vector_bytes(shape);
}

void sm80_backward(const BackwardParams& p, void* stream) {
  check(p);
  const Shape& s = p.shape;
  auto* lse2 = static_cast<float*>(p.workspace);
  auto* delta = reinterpret_cast<float*>(static_cast<unsigned char*>(p.workspace) + vector_bytes(s));
  auto* queue = static_cast<cudaStream_t>(stream);
  const PrepareArgs prepare{s, p.out, p.d_out, p.out_stride, p.d_out_stride, p.lse, lse2, delta, padded_rows(s)};
  const std::int64_t lanes = std::int64_t{s.B} * s.H * padded_rows(s) * kLanes;
  sm80_backward_prepare<<<static_cast<unsigned>((lanes + kPrepareThreads - 1) / kPrepareThreads), kPrepareThreads, 0,
                          queue>>>(prepare);
  cudaError_t status = cudaGetLastError();

  Sm80BackwardArgs args;
  args.problem.shape = s;
  args.problem.ranges = p.ranges;
  args.problem.scale = p.scale;
  args.problem.scale_log2 = static_cast<float>(p.scale * 1.4426950408889634);
  args.q = p.q, args.k = p.k, args.v = p.v, args.d_out = p.d_out;
  args.d_q = p.d_q, args.d_k = p.d_k, args.d_v = p.d_v;
  args.q_stride = p.q_stride, args.k_stride = p.k_stride, args.v_stride = p.v_stride;
  args.d_out_stride = p.d_out_stride;
  args.d_q_stride = p.d_q_stride, args.d_k_stride = p.d_k_stride, args.d_v_stride = p.d_v_stride;
  args.lse2 = lse2, args.delta = delta, args.padded_rows = padded_rows(s);
  args.tiles = 0;
  if (status == cudaSuccess) status = static_cast<cudaError_t>(instance_for(s).launch(args, stream));
  require(status == cudaSuccess, "attention backward failed to launch: {}", cudaGetErrorString(status));
}

}  // namespace sfa::flash
