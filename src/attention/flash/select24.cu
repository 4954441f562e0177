// Selection kernel: a block takes 64 tokens of one or two heads. Rows come into shared memory by asynchronous copies; a
// lane owns a segment of 64 features, D / 64 neighbouring lanes a row (select_network.cuh). Every output leaves through
// shared memory in whole lines: the zero-filled row, values and indices, the compressed operand with its metadata.
#include "attention/flash/select24.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "attention/flash/select_segment.cuh"
#include "core/error.h"

namespace sfa::flash {
namespace {

constexpr int kTokens = 64;  // a block
constexpr int kMaxKeep = 16;
constexpr int kBlocksPerSm = 6;

/// Where row `row` of 64 puts the value words and the metadata of its features 16 sub .. 16 sub + 15.
template <int kD>
struct CompressedLayout {
  static __device__ __forceinline__ int thread_of(int row, int q) { return (row / 16) * 32 + (row % 8) * 4 + q; }
  /// 16-byte pieces change places so that rows do not meet in a bank; the copy to memory puts them back.
  static __device__ __forceinline__ int staged(int piece) { return piece ^ (piece >> 3 & 3); }
  static __device__ __forceinline__ int value_word(int row, int sub, int group) {
    return staged(sub / 2 * 128 + thread_of(row, group)) * 4 + sub % 2 * 2 + row / 8 % 2;
  }
  /// In units of 16 bits.
  static __device__ __forceinline__ int meta_half(int row, int sub) {
    const int word = kD / 32 * 512 + sub / 4 * 128 + thread_of(row, sub % 4);
    return (staged(word / 4) * 4 + word % 4) * 2 + row / 8 % 2;
  }
};

/// Shared memory of a block; k features a row.
template <int kD, int kHeads>
struct BlockLayout {
  static constexpr int kRows = kTokens * kHeads;
  static constexpr int kThreads = kRows * (kD / kSegment);
  static constexpr int kSegments = kThreads * 2 * kSegment;  // bytes
  static constexpr int kPairs = kSegments;
  static constexpr int kCompressed = kPairs + 64;
  static constexpr int compressed_bytes(bool wanted) { return wanted ? kHeads * compressed_block_bytes(kD) : 0; }
  static constexpr int values(bool compressed) { return kCompressed + compressed_bytes(compressed); }
  static constexpr int bytes(bool compressed, int k) { return values(compressed) + kRows * k * 3; }
};

/// One tile of one job.
template <int kD, int kHeads, int kKeep>
struct Selector {
  using Layout = BlockLayout<kD, kHeads>;
  static constexpr int kLanes = kD / kSegment;
  static constexpr int kThreads = Layout::kThreads;

  const SelectParams& p;
  unsigned char* memory;
  int first, head0, batch;  // first token, first head
  bool packs;

  __device__ __forceinline__ uint4* segments() const { return reinterpret_cast<uint4*>(memory); }
  __device__ __forceinline__ unsigned short* values() const {
    return reinterpret_cast<unsigned short*>(memory + Layout::values(packs));
  }
  __device__ __forceinline__ std::uint8_t* indices() const {
    return memory + Layout::values(packs) + Layout::kRows * p.k * 2;
  }

  /// Segments are numbered token by token, head by head, part by part; a pass of the block over 16-byte pieces covers 8
  /// tokens. Calls fn(piece in shared memory, element offset for the stride, whether it lies inside).
  template <class Fn>
  __device__ __forceinline__ void each_piece(const Strides& stride, const Fn& fn) const {
    constexpr int kPass = kHeads * kLanes * 8;  // segments
    static_assert(kThreads == 8 * kPass);
    const int segment = threadIdx.x / 8, piece = threadIdx.x % 8, row = segment / kLanes;
    const int token = first + row / kHeads, head = head0 + row % kHeads, place = piece_at(segment, piece);
    const std::int64_t offset =
        batch * stride.batch + token * stride.token + head * stride.head + (segment % kLanes) * kSegment + piece * 8;
    const int inside = head < p.heads ? p.T - token : 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) fn(place + i * kPass * 8, offset + 8 * i * stride.token, 8 * i < inside);
  }

  __device__ __forceinline__ void load() const {
    const auto* x = static_cast<const unsigned short*>(p.x);
    each_piece(p.x_stride, [&](int piece, std::int64_t offset, bool inside) {
      const auto to = static_cast<unsigned>(__cvta_generic_to_shared(segments() + piece));
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(inside ? x + offset : x),
                   "r"(inside ? 16 : 0)
                   : "memory");
    });
    asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
    __syncthreads();
  }

  template <bool k2of4>
  __device__ __forceinline__ void select() const {
    const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
    Chosen<kLanes> chosen;
    chosen.template choose<k2of4, kKeep>(segments(), threadIdx.x, p.k, lane);
    if (p.values != nullptr || p.indices != nullptr)
      chosen.stage_support(segments(), threadIdx.x, values() + row * p.k, indices() + row * p.k, lane);
    chosen.zero_rest();
    if constexpr (k2of4) {
      if (p.compressed != nullptr) {
        auto* staging =
            reinterpret_cast<unsigned*>(memory + Layout::kCompressed) + row % kHeads * (compressed_block_bytes(kD) / 4);
        chosen.template stage_compressed<CompressedLayout<kD>>(
            staging, reinterpret_cast<const unsigned*>(memory + Layout::kPairs), row / kHeads, lane);
      }
    }
    if (p.dense != nullptr) chosen.write(segments(), threadIdx.x);
  }

  /// A token's heads are neighbours in [B, T, heads, k].
  __device__ __forceinline__ void store_support() const {
    const int tokens = min(kTokens, p.T - first), heads = min(kHeads, p.heads - head0), k = p.k;
    const std::int64_t to = ((static_cast<std::int64_t>(batch) * p.T + first) * p.heads + head0) * k;
    const std::int64_t token_stride = static_cast<std::int64_t>(p.heads) * k;
    auto* global = static_cast<unsigned short*>(p.values) + to;
    if (k % 8 == 0) {
      const int pieces = k / 8, width = kHeads * pieces;
      for (int i = threadIdx.x; i < tokens * width; i += kThreads) {
        const int token = i / width, piece = i - token * width;
        if (piece >= heads * pieces) continue;
        const std::int64_t offset = token * token_stride + piece * 8;
        if (p.values != nullptr)
          *reinterpret_cast<uint4*>(global + offset) = reinterpret_cast<const uint4*>(values())[i];
        if (p.indices != nullptr)
          *reinterpret_cast<uint2*>(p.indices + to + offset) = reinterpret_cast<const uint2*>(indices())[i];
      }
      return;
    }
    const int width = kHeads * k;
    for (int i = threadIdx.x; i < tokens * width; i += kThreads) {
      const int token = i / width, element = i - token * width;
      if (element >= heads * k) continue;
      const std::int64_t offset = token * token_stride + element;
      if (p.values != nullptr) global[offset] = values()[i];
      if (p.indices != nullptr) p.indices[to + offset] = indices()[i];
    }
  }

  __device__ __forceinline__ void store_dense() const {
    auto* dense = static_cast<unsigned short*>(p.dense);
    each_piece(p.dense_stride, [&](int piece, std::int64_t offset, bool inside) {
      if (inside) *reinterpret_cast<uint4*>(dense + offset) = segments()[piece];
    });
  }

  __device__ __forceinline__ void store_compressed() const {
    constexpr int kPieces = compressed_block_bytes(kD) / 16;
    const int blocks = (p.T + kTokens - 1) / kTokens;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (head0 + h >= p.heads) break;
      const std::int64_t block = (static_cast<std::int64_t>(batch) * p.heads + head0 + h) * blocks + first / kTokens;
      auto* target = static_cast<uint4*>(p.compressed) + block * kPieces;
      const auto* source = reinterpret_cast<const uint4*>(memory + Layout::kCompressed) + h * kPieces;
      for (int i = threadIdx.x; i < kPieces; i += kThreads) target[i] = source[CompressedLayout<kD>::staged(i)];
    }
  }

  __device__ __forceinline__ void run() const {
    if (threadIdx.x < 16) reinterpret_cast<unsigned*>(memory + Layout::kPairs)[threadIdx.x] = stored_pair(threadIdx.x);
    load();
    if (p.rule == Selection::topk_2of4)
      select<true>();
    else
      select<false>();
    __syncthreads();
    if (p.dense != nullptr) store_dense();
    if (packs) store_compressed();
    if (p.values != nullptr || p.indices != nullptr) store_support();
  }
};

struct Jobs {
  SelectParams part[2];
  int groups[2] = {0, 0};  // of heads; blockIdx.y counts through both and on into the copy
  RowCopy copy;
};

/// 64 tokens by 256 bytes of the rows that are only copied.
template <int kThreads>
__device__ __forceinline__ void copy_tile(const RowCopy& copy, int T, int column) {
  constexpr int kPieces = 16, kPass = kThreads / kPieces, kCount = kTokens / kPass;
  const int first = blockIdx.x * kTokens + threadIdx.x / kPieces, at = (column * kPieces + threadIdx.x % kPieces) * 8;
  const int inside = at < copy.width ? T - first : 0;
  const auto* from = static_cast<const unsigned short*>(copy.from) + blockIdx.z * copy.from_stride.batch +
                     first * copy.from_stride.token + at;
  auto* to =
      static_cast<unsigned short*>(copy.to) + blockIdx.z * copy.to_stride.batch + first * copy.to_stride.token + at;
  uint4 piece[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    if (i * kPass < inside) piece[i] = *reinterpret_cast<const uint4*>(from + i * kPass * copy.from_stride.token);
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    if (i * kPass < inside) *reinterpret_cast<uint4*>(to + i * kPass * copy.to_stride.token) = piece[i];
}

/// Grid: x tokens, y groups of heads, z batch.
template <int kD, int kHeads, int kKeep>
__global__ void __launch_bounds__(BlockLayout<kD, kHeads>::kThreads, kBlocksPerSm)
    select_kernel(const __grid_constant__ Jobs jobs) {
  extern __shared__ __align__(16) unsigned char memory[];
  int y = blockIdx.y;
  const int which = y >= jobs.groups[0];
  if (which) y -= jobs.groups[0];
  if (which && y >= jobs.groups[1])
    return copy_tile<BlockLayout<kD, kHeads>::kThreads>(jobs.copy, jobs.part[0].T, y - jobs.groups[1]);
  const SelectParams& p = jobs.part[which];
  const Selector<kD, kHeads, kKeep> selector{p,
                                             memory,
                                             static_cast<int>(blockIdx.x) * kTokens,
                                             y * kHeads,
                                             static_cast<int>(blockIdx.z),
                                             p.rule == Selection::topk_2of4 && p.compressed != nullptr};
  selector.run();
}

void check(const SelectParams& p) {
  require(selection_supported(p.D), "feature selection on the GPU is built for rows of 64 and 128 features, not {}",
          p.D);
  const int most = p.rule == Selection::topk_2of4 ? p.D / 2 : p.D;
  require(p.k >= 1 && p.k <= most, "cannot select {} of {} features; between 1 and {} are possible", p.k, p.D, most);
  require(p.compressed == nullptr || p.rule == Selection::topk_2of4, "the compressed operand needs the 2-of-4 rule");
  require(p.heads <= 32767 && p.B <= 65535, "feature selection: {} heads and batch {}; 32767 and 65535 at most",
          p.heads, p.B);
}

template <int kD, int kHeads, int kKeep>
cudaError_t launch(Jobs jobs, cudaStream_t stream) {
  using Layout = BlockLayout<kD, kHeads>;
  int bytes = 0;
  for (int i = 0; i < 2; ++i) {
    const SelectParams& p = jobs.part[i];
    jobs.groups[i] = (p.heads + kHeads - 1) / kHeads;
    if (p.heads > 0) bytes = std::max(bytes, Layout::bytes(p.compressed != nullptr, p.k));
  }
  const int copies = jobs.copy.from != nullptr ? (jobs.copy.width + 127) / 128 : 0;
  const auto kernel = select_kernel<kD, kHeads, kKeep>;
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  const SelectParams& p = jobs.part[0];
  const dim3 grid(static_cast<unsigned>((p.T + kTokens - 1) / kTokens),
                  static_cast<unsigned>(jobs.groups[0] + jobs.groups[1] + copies), static_cast<unsigned>(p.B));
  kernel<<<grid, Layout::kThreads, bytes, stream>>>(jobs);
  return cudaGetLastError();
}

template <int kD, int kHeads>
cudaError_t launch_for_k(const Jobs& jobs, cudaStream_t stream) {
  const int k = std::max(jobs.part[0].k, jobs.part[1].k);
  if (k <= 8) return launch<kD, kHeads, 8>(jobs, stream);
  if (k <= kMaxKeep) return launch<kD, kHeads, kMaxKeep>(jobs, stream);
  return launch<kD, kHeads, 0>(jobs, stream);
}

void select(const Jobs& jobs, void* stream) {
  const SelectParams& p = jobs.part[0];
  if (p.B == 0 || p.T == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  const cudaError_t status = p.D == 64 ? launch_for_k<64, 2>(jobs, queue) : launch_for_k<128, 1>(jobs, queue);
  require(status == cudaSuccess, "feature selection failed to launch: {}", cudaGetErrorString(status));
}

}  // namespace

void select_features(const SelectParams& params, void* stream) {
  check(params);
  Jobs jobs;
  jobs.part[0] = params;
  if (params.heads > 0) select(jobs, stream);
}

void select_features(const SelectParams& queries, const SelectParams& keys, const RowCopy& values, void* stream) {
  check(queries);
  check(keys);
  require(queries.B == keys.B && queries.T == keys.T && queries.D == keys.D,
          "queries [{}, {}, .., {}] and keys [{}, {}, .., {}] cannot be selected in one pass", queries.B, queries.T,
          queries.D, keys.B, keys.T, keys.D);
  require(values.width % 8 == 0 && values.width <= 1 << 20, "rows of {} values cannot be copied beside a selection",
          values.width);
  Jobs jobs;
  jobs.part[0] = queries;
  jobs.part[1] = keys;
  jobs.copy = values;
  select(jobs, stream);
}

}  // namespace sfa::flash
