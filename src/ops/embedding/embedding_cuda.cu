// Backward of the token table without atomics on floats. Positions are sorted by token (stable radix sort, so that a
// token's positions stay ascending); the sorted list is cut into chunks of 32, and a chunk sums the runs of equal
// tokens in it. A run inside one chunk goes straight to d_wte; of a run that crosses chunks every chunk keeps a partial
// row, which a second kernel adds in order.
#include <cub/device/device_radix_sort.cuh>

#include <algorithm>
#include <bit>

#include "cuda/launch.h"
#include "cuda/vector.cuh"
#include "ops/embedding/embedding_cuda.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kColumnThreads = 128;
constexpr std::int64_t kChunk = 32;

template <class T, int WIDTH>
__global__ void forward_kernel(const std::int32_t* __restrict__ tokens, const T* __restrict__ wte,
                               const T* __restrict__ wpe, T* __restrict__ out, std::int64_t N, std::int64_t steps,
                               std::int64_t C) {
  const std::int64_t i = (blockIdx.x * std::int64_t{kThreads} + threadIdx.x) * WIDTH;
  const std::int64_t n = i / C, c = i % C;
  if (n >= N) return;
  float row[WIDTH];
  load(row, wte + tokens[n] * C + c);
  if (wpe != nullptr) {
    float place[WIDTH];
    load(place, wpe + (n % steps) * C + c);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) row[j] += place[j];
  }
  store(out + i, row);
}

// d_wpe[t] += sum over b of d_out[b, t], b ascending.
template <class T, class G, int WIDTH>
__global__ void position_backward_kernel(const T* __restrict__ d_out, G* d_wpe, std::int64_t B, std::int64_t steps,
                                         std::int64_t C) {
  const std::int64_t i = (blockIdx.x * std::int64_t{kThreads} + threadIdx.x) * WIDTH;
  if (i >= steps * C) return;
  float sum[WIDTH] = {}, old[WIDTH];
#pragma unroll 4
  for (std::int64_t b = 0; b < B; ++b) {
    float row[WIDTH];
    load(row, d_out + b * steps * C + i);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) sum[j] += row[j];
  }
  load(old, d_wpe + i);
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) sum[j] += old[j];
  store(d_wpe + i, sum);
}

__global__ void count_up_kernel(std::int32_t* to, std::int64_t n) {
  const std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (i < n) to[i] = static_cast<std::int32_t>(i);
}

struct Sorted {
  const std::int32_t* token;     // [N] ascending
  const std::int32_t* position;  // [N] the row of d_out that token came from; ascending within a token
  std::int64_t N, C;
  float* head;  // [chunks, C] sum of the first run, when it began in an earlier chunk
  float* tail;  // [chunks, C] sum of the last run, when it began here and goes on in the next chunk
};

template <class G, int WIDTH>
__device__ __forceinline__ void add_row(G* to, const float (&sum)[WIDTH]) {
  float row[WIDTH];
  load(row, to);
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) row[j] += sum[j];
  store(to, row);
}

// Grid (chunks, columns).
template <class T, class G, int WIDTH>
__global__ void chunk_sums_kernel(const Sorted s, const T* __restrict__ d_out, G* d_wte) {
  const std::int64_t c = (blockIdx.y * std::int64_t{kColumnThreads} + threadIdx.x) * WIDTH;
  if (c >= s.C) return;
  const std::int64_t chunk = blockIdx.x, begin = chunk * kChunk, end = min(s.N, begin + kChunk);
  std::int32_t token = s.token[begin];
  bool began_before = begin > 0 && s.token[begin - 1] == token;
  float sum[WIDTH] = {};
  for (std::int64_t e = begin; e < end; ++e) {
    const std::int32_t next = s.token[e];
    if (next != token) {
      if (began_before)
        store(s.head + chunk * s.C + c, sum);
      else
        add_row(d_wte + token * s.C + c, sum);
      token = next;
      began_before = false;
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) sum[j] = 0;
    }
    float row[WIDTH];
    load(row, d_out + s.position[e] * s.C + c);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) sum[j] += row[j];
  }
  if (began_before)
    store(s.head + chunk * s.C + c, sum);
  else if (end < s.N && s.token[end] == token)
    store(s.tail + chunk * s.C + c, sum);
  else
    add_row(d_wte + token * s.C + c, sum);
}

// The chunk in which a crossing run begins adds the run's partial rows, in order.
template <class G, int WIDTH>
__global__ void crossing_runs_kernel(const Sorted s, G* d_wte) {
  const std::int64_t c = (blockIdx.y * std::int64_t{kColumnThreads} + threadIdx.x) * WIDTH;
  if (c >= s.C) return;
  const std::int64_t chunk = blockIdx.x, begin = chunk * kChunk, end = begin + kChunk;
  if (end >= s.N) return;
  const std::int32_t token = s.token[end - 1];
  const bool began_here = begin == 0 || s.token[begin - 1] != token;
  if (s.token[end] != token || !began_here) return;
  float sum[WIDTH];
  load(sum, s.tail + chunk * s.C + c);
#pragma unroll 4
  for (std::int64_t other = chunk + 1; other * kChunk < s.N && s.token[other * kChunk] == token; ++other) {
    float row[WIDTH];
    load(row, s.head + other * s.C + c);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) sum[j] += row[j];
  }
  add_row(d_wte + token * s.C + c, sum);
}

// Temporary memory of the sort: a second copy of keys and values and some counters. The exact size depends on the card;
// a plan must not.
std::int64_t sort_bytes(std::int64_t N) {
  return 12 * N + (std::int64_t{2} << 20);
}

struct Scratch {
  Tensor token, position, identity;  // [N] i32
  Tensor sort;                       // bytes
  Tensor head, tail;                 // [chunks, C] f32
  Scratch(Arena& arena, std::int64_t N, std::int64_t C)
      : token(arena.take(DType::i32, {N})),
        position(arena.take(DType::i32, {N})),
        identity(arena.take(DType::i32, {N})),
        sort(arena.take(DType::u8, {sort_bytes(N)})),
        head(arena.take(DType::f32, {ceil_div(N, kChunk), C})),
        tail(arena.take(DType::f32, {ceil_div(N, kChunk), C})) {}
};

Sorted sort_by_token(CudaState& state, const Tensor& tokens, std::int64_t Vp, const Scratch& scratch) {
  const std::int64_t N = tokens.numel();
  auto* token = data_of<std::int32_t>(scratch.token);
  auto* position = data_of<std::int32_t>(scratch.position);
  auto* identity = data_of<std::int32_t>(scratch.identity);
  count_up_kernel<<<blocks_for(N, kThreads), kThreads, 0, state.stream>>>(identity, N);
  SFA_LAUNCH_CHECK();
  const int bits = std::max(1, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(Vp - 1))));
  const auto* keys = data_of<const std::int32_t>(tokens);
  const auto count = static_cast<std::int32_t>(N);
  std::size_t bytes = 0;
  SFA_CUDA_CHECK(
      cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, token, identity, position, count, 0, bits, state.stream));
  require(bytes <= static_cast<std::size_t>(scratch.sort.bytes()),
          "internal error: sorting {} tokens takes {} bytes, planned were {}", N, bytes, scratch.sort.bytes());
  SFA_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(scratch.sort.data, bytes, keys, token, identity, position, count, 0,
                                                 bits, state.stream));
  return {.token = token,
          .position = position,
          .N = N,
          .C = scratch.head.dim(1),
          .head = data_of<float>(scratch.head),
          .tail = data_of<float>(scratch.tail)};
}

template <class T, class G, int WIDTH>
void backward(CudaState& state, const EmbeddingBackward& args, const Scratch& scratch) {
  const std::int64_t B = args.d_out.dim(0), steps = args.d_out.dim(1), C = args.d_out.dim(2);
  const T* d_out = data_of<const T>(args.d_out);
  if (!args.d_wpe.empty()) {
    position_backward_kernel<T, G, WIDTH><<<blocks_for(steps * C / WIDTH, kThreads), kThreads, 0, state.stream>>>(
        d_out, data_of<G>(args.d_wpe), B, steps, C);
    SFA_LAUNCH_CHECK();
  }
  const Sorted sorted = sort_by_token(state, args.tokens, args.d_wte.dim(0), scratch);
  const dim3 grid(blocks_for(B * steps, kChunk), blocks_for(C, kColumnThreads * WIDTH));
  chunk_sums_kernel<T, G, WIDTH><<<grid, kColumnThreads, 0, state.stream>>>(sorted, d_out, data_of<G>(args.d_wte));
  SFA_LAUNCH_CHECK();
  crossing_runs_kernel<G, WIDTH><<<grid, kColumnThreads, 0, state.stream>>>(sorted, data_of<G>(args.d_wte));
  SFA_LAUNCH_CHECK();
}

}  // namespace

void embedding_forward(Context& ctx, const Tensor& tokens, const Tensor& wte, const Tensor& wpe,
                       std::int64_t first_position, const Tensor& out) {
  CudaState& state = ctx.cuda();
  const std::int64_t N = tokens.numel(), steps = tokens.dim(1), C = out.dim(2);
  if (N == 0) return;
  for_float_type(out.dtype, "embedding_forward", [&]<class T>() {
    const T* positions = wpe.empty() ? nullptr : data_of<const T>(wpe) + first_position * C;
    const auto launch = [&](auto kernel, int width) {
      kernel<<<blocks_for(N * C / width, kThreads), kThreads, 0, state.stream>>>(
          data_of<const std::int32_t>(tokens), data_of<const T>(wte), positions, data_of<T>(out), N, steps, C);
    };
    if (vectors_of_eight(C, data_of<T>(wte), positions, data_of<T>(out)))
      launch(forward_kernel<T, 8>, 8);
    else
      launch(forward_kernel<T, 1>, 1);
  });
  SFA_LAUNCH_CHECK();
}

void embedding_backward(Context& ctx, const EmbeddingBackward& args) {
  if (args.d_out.numel() == 0) return;
  ArenaScope scope(args.scratch);
  const Scratch scratch(args.scratch, args.tokens.numel(), args.d_out.dim(2));
  if (ctx.planning) return;
  CudaState& state = ctx.cuda();
  require(args.tokens.numel() < (std::int64_t{1} << 31), "internal error: embedding_backward of {}", args.tokens);
  for_float_type(args.d_out.dtype, "embedding_backward", [&]<class T>() {
    for_float_type(args.d_wte.dtype, "embedding_backward", [&]<class G>() {
      if (vectors_of_eight(args.d_out.dim(2), data_of<T>(args.d_out), data_of<G>(args.d_wte), data_of<G>(args.d_wpe)))
        backward<T, G, 8>(state, args, scratch);
      else
        backward<T, G, 1>(state, args, scratch);
    });
  });
}

}  // namespace sfa::cuda_ops
