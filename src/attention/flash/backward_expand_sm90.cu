// Full rows of sparse Q and K in one launch: a block fills some rows with zeros in shared memory, scatters their values
// there, and writes them in pieces of 16 bytes, neighbours to neighbours. A kept zero is written as -0, so that a
// feature is kept if and only if its bits are not zero (backward_support.cuh).
#include <cuda_runtime.h>

#include <algorithm>

#include "attention/flash/backward_args.cuh"
#include "cuda/sm90_store.cuh"

namespace sfa::flash {
namespace {

constexpr int kThreads = 256;
constexpr int kBytes = 16384;  // of rows a block

struct Job {
  KeptFeatures from;
  void* to;
  Strides stride;
  unsigned rows, tokens, heads, features;
  unsigned block_rows;  // a multiple of 8: then what a block reads is aligned like the whole
  unsigned blocks;
};

Job job_of(const KeptFeatures& from, void* to, const Strides& stride, int batch, int tokens, int heads, int features) {
  Job job{from, to, stride, 0, 0, 0, 0, 0, 0};
  job.rows = static_cast<unsigned>(batch) * tokens * heads;
  job.tokens = tokens;
  job.heads = heads;
  job.features = features;
  job.block_rows = kBytes / 2 / features / 8 * 8;
  job.blocks = (job.rows + job.block_rows - 1) / job.block_rows;
  return job;
}

/// Eight neighbouring values with their features; those from `count` on are left out.
struct Eight {
  uint4 values;
  uint2 indices;
};
__device__ __forceinline__ Eight load_eight(const KeptFeatures& from, std::int64_t at, unsigned count) {
  const auto* values = static_cast<const unsigned short*>(from.values) + at;
  const std::uint8_t* indices = from.indices + at;
  if (count >= 8)
    return {__ldg(reinterpret_cast<const uint4*>(values)), __ldg(reinterpret_cast<const uint2*>(indices))};
  unsigned x[4] = {0, 0, 0, 0}, d[2] = {0, 0};
#pragma unroll
  for (unsigned i = 0; i < 8; ++i)
    if (i < count) {
      x[i / 2] |= static_cast<unsigned>(values[i]) << (i % 2 * 16);
      d[i / 4] |= static_cast<unsigned>(indices[i]) << (i % 4 * 8);
    }
  return {make_uint4(x[0], x[1], x[2], x[3]), make_uint2(d[0], d[1])};
}

/// Elements at, at + 1 ... of the block's into its rows.
__device__ __forceinline__ void scatter(unsigned short* rows, const Eight& eight, unsigned at, unsigned count,
                                        unsigned k, unsigned features) {
  const unsigned x[4] = {eight.values.x, eight.values.y, eight.values.z, eight.values.w};
  const unsigned d[2] = {eight.indices.x, eight.indices.y};
  const unsigned first = at / k;
  unsigned n = at - first * k;
  unsigned short* row = rows + first * features;
#pragma unroll
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned value = x[i / 2] >> (i % 2 * 16) & 0xffffu;
    if (at + i < count) row[d[i / 4] >> (i % 4 * 8) & 255u] = static_cast<unsigned short>(value == 0 ? 0x8000u : value);
    if (++n == k) {
      n = 0;
      row += features;
    }
  }
}

/// The block's rows to where they belong. A thread writes the same piece of every `step`-th row.
__device__ __forceinline__ void write_rows(const Job& job, const uint4* from, unsigned first_row, unsigned rows) {
  const unsigned chunks = job.features / 8, step = kThreads / chunks, chunk = threadIdx.x % chunks;
  const unsigned step_tokens = step / job.heads, step_heads = step - step_tokens * job.heads;
  unsigned row = threadIdx.x / chunks;
  if (row >= step) return;
  unsigned token = (first_row + row) / job.heads, head = first_row + row - token * job.heads,
           batch = token / job.tokens;
  token -= batch * job.tokens;
  for (; row < rows; row += step) {
    auto* to = static_cast<unsigned short*>(job.to) + batch * job.stride.batch + token * job.stride.token +
               head * job.stride.head;
    reinterpret_cast<uint4*>(to)[chunk] = from[row * chunks + chunk];
    head += step_heads;
    token += step_tokens;
    if (head >= job.heads) head -= job.heads, ++token;
    while (token >= job.tokens) token -= job.tokens, ++batch;
  }
}

__global__ void __launch_bounds__(kThreads, 8)
    backward_expand(const __grid_constant__ Job q, const __grid_constant__ Job k) {
  __shared__ uint4 full[kBytes / 16];
  sm90::launch_dependents();
  const bool keys = blockIdx.x >= q.blocks;
  const Job& job = keys ? k : q;
  const unsigned first_row = (keys ? blockIdx.x - q.blocks : blockIdx.x) * job.block_rows;
  const unsigned rows = min(job.block_rows, job.rows - first_row), kept = static_cast<unsigned>(job.from.k);
  const unsigned count = rows * kept;
  const std::int64_t first = static_cast<std::int64_t>(first_row) * kept;
  unsigned at = threadIdx.x * 8;
  Eight eight{};
  if (at < count) eight = load_eight(job.from, first + at, count - at);  // under the zeros
  for (unsigned i = threadIdx.x; i < rows * (job.features / 8); i += kThreads) full[i] = make_uint4(0, 0, 0, 0);
  __syncthreads();
  while (at < count) {
    scatter(reinterpret_cast<unsigned short*>(full), eight, at, count, kept, job.features);
    at += kThreads * 8;
    if (at < count) eight = load_eight(job.from, first + at, count - at);
  }
  __syncthreads();
  write_rows(job, full, first_row, rows);
}

}  // namespace

cudaError_t launch_backward_expand(const BackwardArgs& args, cudaStream_t stream) {
  const Shape& s = args.shape;
  const Job q = job_of(args.q_sparse, args.q_pointer, args.q_stride, s.B, s.Tq, s.H, s.Dqk);
  const Job k = job_of(args.k_sparse, args.k_pointer, args.k_stride, s.B, s.Tk, s.G, s.Dqk);
  backward_expand<<<q.blocks + k.blocks, kThreads, 0, stream>>>(q, k);
  return cudaGetLastError();
}

}  // namespace sfa::flash
