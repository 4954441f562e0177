// The projection with selection for sm_90a.
//
// One persistent block an SM, two blocks a cluster, a tile of 128 tokens by 256 output features a block:
//   two warpgroups of products  64 tokens each: x W^T in 128 registers a thread, then bias, rounding, and the tile goes
//                               to shared memory; on with the next tile
//   three warps of selection    under the next tile's products: of 32 tokens and 64 features (a pass) each takes every
//                               third; features are selected, rows zero-filled in place or compressed, everything
//                               leaves in whole lines
//   a warp of producer          x and W by TMA, 64 features of x a stage; a block of the cluster fetches half of the
//                               rows of W for both
// One product instruction for 256 columns needs more registers than a thread of four warpgroups has: hence three.
// The second warpgroup of products starts kLag stages behind the first, so that the ends of their tiles fall apart and
// the tensor cores stay busy.
#pragma once

#include <cuda_bf16.h>

#include "attention/flash/project_schedule.cuh"
#include "attention/flash/project_stage.cuh"
#include "attention/flash/select24.h"
#include "cuda/sm90.cuh"
#include "cuda/sm90_cluster.cuh"
#include "cuda/sm90_store.cuh"

namespace sfa::flash {

/// kKeep: features that the sorting network keeps.
template <int kD_, int kKeep_, int kCluster_, int kStages_, int kLag_>
struct ProjectConfig {
  static constexpr int kD = kD_, kKeep = kKeep_, kCluster = kCluster_, kStages = kStages_, kLag = kLag_;
  static constexpr int kThreads = 384, kSelectWarps = 3;
  static constexpr int kLanes = kD / kSegment, kPassRows = 32 / kLanes;
  static constexpr int kPanelBytes = kProjectRows * 128;  // of a tile at rest: 64 features of all its rows
  static constexpr int kInputBytes = kProjectRows * 128, kWeightBytes = kProjectColumns * 128;  // of a stage
  using Layout = CompressedPart<kD, kPassRows>;
};

template <class Config>
struct alignas(1024) ProjectStorage {
  unsigned char input[Config::kStages][Config::kInputBytes];
  unsigned char weight[Config::kStages][Config::kWeightBytes];
  unsigned char rows[kProjectColumns / 64][Config::kPanelBytes];
  struct Scratch {  // a warp of selection's
    uint4 compressed[Config::Layout::kPieces];
    alignas(16) unsigned short values[Config::kPassRows * Config::kKeep];
    alignas(16) std::uint8_t indices[Config::kPassRows * Config::kKeep];
  } scratch[Config::kSelectWarps];
  alignas(16) unsigned short bias[2][kProjectColumns];
  unsigned pairs[16];
  sm90::Barrier full[Config::kStages], empty[Config::kStages];
  sm90::Barrier staged[4], taken[4];  // 32 rows of a tile
};

struct ProjectMaps {
  CUtensorMap input, weight;
  CUtensorMap rows[3];  // zero-filled queries, keys; values
};

// ---------------------------------------------------------------------------------------------------------- producer

template <class Config>
__device__ __forceinline__ void produce_stages(const ProjectArgs& args, ProjectStorage<Config>& shared,
                                               const ProjectMaps& maps, int first, int step, int rank) {
  using namespace sm90;
  constexpr int kCluster = Config::kCluster;
  RingState<Config::kStages> ring;
  const int tiles = args.row_units * args.columns;
  for (int index = first, parity = 0; index < tiles; index += step, parity ^= 1) {
    const ProjectTile at = project_tile<kCluster>(args, index, rank);
    const int column = args.begin[at.section] + at.column;
    for (int k = 0; k < args.k_blocks; ++k) {
      barrier_wait(&shared.empty[ring.index], ring.parity ^ 1);
      std::uint32_t bytes = Config::kInputBytes + Config::kWeightBytes;
      Barrier* full = &shared.full[ring.index];
      if (k == 0 && args.bias != nullptr) {  // two buffers suffice: there are at least as many k_blocks as stages
        const std::uint32_t bias_bytes = min(kProjectColumns, args.row - column) * 2;
        barrier_expect(full, bytes + bias_bytes);
        tma_load_bulk(shared.bias[parity], args.bias + column, bias_bytes, full);
      } else {
        barrier_expect(full, bytes);
      }
      tma_load_3d(shared.input[ring.index], &maps.input, full, k * 64, at.token, at.entry);
      constexpr int kPart = kProjectColumns / kCluster;  // rows of W that this block fetches
      tma_load_everywhere_3d<kCluster>(shared.weight[ring.index] + rank * kPart * 128, &maps.weight, full, k * 64,
                                       column + rank * kPart, 0, kEvictLast);
      ring.advance();
    }
  }
}

// ---------------------------------------------------------------------------------------------------------- products

template <class Config>
struct ProjectProducts {
  ProjectStorage<Config>& shared;
  const int warpgroup;
  sm90::RingState<Config::kStages> ring;
  float d[kProjectColumns / 2];

  __device__ __forceinline__ ProjectProducts(ProjectStorage<Config>& storage, int index)
      : shared(storage), warpgroup(index) {}

  __device__ __forceinline__ void release(int stage) {
    if ((threadIdx.x & 31) == 0) sm90::barrier_arrive_everywhere<Config::kCluster>(&shared.empty[stage]);
  }

  __device__ __forceinline__ void issue_stage(bool accumulate) {
    const std::uint64_t a =
        sm90::swizzle128_descriptor(sm90::smem_address(shared.input[ring.index]) + warpgroup * 64 * 128);
    const std::uint64_t b = sm90::swizzle128_descriptor(sm90::smem_address(shared.weight[ring.index]));
#pragma unroll
    for (int step = 0; step < 4; ++step)
      sm90::Wgmma<kProjectColumns>::ss(d, sm90::descriptor_advance(a, step * 32),
                                       sm90::descriptor_advance(b, step * 32), accumulate || step > 0);
  }

  __device__ __forceinline__ void multiply(int k_blocks, bool first_tile) {
    if (Config::kLag > 0 && first_tile && warpgroup == 1) sm90::named_barrier_sync(1, 256);
    int previous = 0;
#pragma unroll 1
    for (int k = 0; k < k_blocks; ++k) {
      sm90::barrier_wait(&shared.full[ring.index], ring.parity);
      sm90::wgmma_fence();
      issue_stage(k > 0);
      sm90::wgmma_commit();
      if (k > 0) {
        sm90::wgmma_wait<1>();
        release(previous);
      }
      if (Config::kLag > 0 && first_tile && warpgroup == 0 && k == Config::kLag) sm90::named_barrier_arrive(1, 256);
      previous = static_cast<int>(ring.index);
      ring.advance();
    }
    sm90::wgmma_wait<0>();
    sm90::wgmma_pin(d);
    release(previous);
  }

  /// The tile with its bias, rounded, to where the selection finds it.
  __device__ __forceinline__ void stage(const unsigned short* bias, std::uint32_t parity) {
    const int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) & 3, part = warpgroup * 2 + warp / 2;
    const std::uint32_t row = warpgroup * 64 + warp * 16 + (lane & 15);
    const auto* pairs = reinterpret_cast<const std::uint32_t*>(bias) + (lane & 3);
    const std::uint32_t rows = sm90::smem_address(shared.rows[0]);
    sm90::barrier_wait(&shared.taken[part], parity ^ 1);
#pragma unroll
    for (int j = 0; j < kProjectColumns / 8; j += 2) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t pair = pairs[4 * (j + i)];
        const float low = __uint_as_float(pair << 16), high = __uint_as_float(pair & 0xffff0000u);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float* at = d + 4 * (j + i) + 2 * h;
          const __nv_bfloat162 rounded = __floats2bfloat162_rn(at[0] + low, at[1] + high);
          words[2 * i + h] = reinterpret_cast<const std::uint32_t&>(rounded);
        }
      }
      const std::uint32_t chunk = j + (lane >> 4);
      sm90::store_matrix_x4(rows + chunk / 8 * Config::kPanelBytes + sm90::swizzle128_offset(row, chunk % 8), words[0],
                            words[1], words[2], words[3]);
    }
    sm90::fence_async_shared();
    __syncwarp();
    if (lane == 0) sm90::barrier_arrive(&shared.staged[part]);
  }
};

template <class Config>
__device__ __forceinline__ void multiply_tiles(const ProjectArgs& args, ProjectStorage<Config>& shared, int warpgroup,
                                               int first, int step) {
  ProjectProducts<Config> products(shared, warpgroup);
  const int tiles = args.row_units * args.columns;
  std::uint32_t parity = 0;
#pragma unroll 1
  for (int index = first; index < tiles; index += step, parity ^= 1) {
    products.multiply(args.k_blocks, index == first);
    products.stage(shared.bias[parity], parity);
  }
}

// --------------------------------------------------------------------------------------------------------- selection

/// One warp's share of a tile: every third pass.
template <class Config>
struct ProjectSelector {
  static constexpr int kD = Config::kD, kLanes = Config::kLanes, kPassRows = Config::kPassRows;
  using Layout = typename Config::Layout;
  const ProjectArgs& args;
  ProjectStorage<Config>& shared;
  const int warp;

  __device__ __forceinline__ bool own(int unit) const { return unit % Config::kSelectWarps == warp; }
  __device__ __forceinline__ typename ProjectStorage<Config>::Scratch& scratch() const { return shared.scratch[warp]; }

  /// One panel of 32 rows of values.
  __device__ __forceinline__ void copy_values(const ProjectMaps& maps, const ProjectTile& at, int part,
                                              int panel) const {
    if ((threadIdx.x & 31) != 0 || at.column + panel * 64 >= args.width[2]) return;
    sm90::tma_store_4d(&maps.rows[2], shared.rows[panel] + part * 32 * 128, at.column + panel * 64,
                       at.token + part * 32, at.entry, 0);
    sm90::tma_store_commit();
  }

  /// Values and indices of the rows of a pass; `row` is the first of them among all tokens, `count` those that exist.
  __device__ __forceinline__ void copy_support(const SelectedHeads& out, std::int64_t row, int head, int count) const {
    const int lane = threadIdx.x & 31, k = out.k;
    const std::int64_t to = (row * out.heads + head) * k, stride = static_cast<std::int64_t>(out.heads) * k;
    if (k % 8 == 0) {
      const int pieces = k / 8;  // 1 or 2 a row
      for (int i = lane; i < count * pieces; i += 32) {
        const std::int64_t offset = to + i / pieces * stride + i % pieces * 8;
        *reinterpret_cast<uint4*>(out.values + offset) = reinterpret_cast<const uint4*>(scratch().values)[i];
        *reinterpret_cast<uint2*>(out.indices + offset) = reinterpret_cast<const uint2*>(scratch().indices)[i];
      }
      return;
    }
    for (int i = lane; i < count * k; i += 32) {
      const int at = i / k;
      const std::int64_t offset = to + at * stride + (i - at * k);
      out.values[offset] = scratch().values[i];
      out.indices[offset] = scratch().indices[i];
    }
  }

  /// `token` is the first of the pass in its entry as it is tiled.
  __device__ __forceinline__ void store_compressed(int entry, int token, int head) const {
    const int own_entry = entry + token / args.entry_tokens, own_token = token % args.entry_tokens;
    const std::int64_t block =
        (static_cast<std::int64_t>(own_entry) * args.selected[0].heads + head) * (args.entry_tokens / 64) +
        own_token / 64;
    auto* target = reinterpret_cast<uint4*>(args.compressed + block * compressed_block_bytes(kD));
#pragma unroll
    for (int i = 0; i < Layout::kPieces; i += 32) {
      const int piece = i + (threadIdx.x & 31);
      if (piece < Layout::kPieces)
        target[Layout::piece_of_block(piece, own_token % 64)] = scratch().compressed[Layout::staged(piece)];
    }
  }

  /// kPassRows tokens from row `row` of the tile on, of the tile's head `head`.
  template <bool k2of4>
  __device__ __forceinline__ void pass(const ProjectMaps& maps, const ProjectTile& at, int row, int head) const {
    const SelectedHeads& out = args.selected[at.section];
    const bool packs = k2of4 && args.compressed != nullptr;
    const int lane = threadIdx.x & 31, part = lane % kLanes, own_row = lane / kLanes;
    const int count = min(kPassRows, args.T - (at.token + row));
    auto* segments = reinterpret_cast<uint4*>(shared.rows[head * kLanes + part]);
    const int segment = row + own_row;
    if (own_row >= count) {  // beyond the last token: what stands there is bias alone
#pragma unroll
      for (int piece = 0; piece < 8; ++piece) segments[piece_at(segment, piece)] = {0, 0, 0, 0};
    }
    Chosen<kLanes> chosen;
    chosen.template choose<k2of4, Config::kKeep>(segments, segment, out.k, part);
    const int global_head = at.column / kD + head;
    const std::int64_t first_row = static_cast<std::int64_t>(at.entry) * args.T + at.token + row;
    const bool direct = kLanes == 1 && out.k % 8 == 0;
    if (!direct) {
      chosen.stage_support(segments, segment, scratch().values + own_row * out.k, scratch().indices + own_row * out.k,
                           part);
    } else if (own_row < count) {
      const std::int64_t to = ((first_row + own_row) * out.heads + global_head) * out.k;
      store_support(segments, segment, chosen.support, out.k, out.values + to, out.indices + to);
    }
    chosen.zero_rest();
    if (packs)
      chosen.template stage_compressed<Layout>(reinterpret_cast<unsigned*>(scratch().compressed), shared.pairs, own_row,
                                               part);
    else
      chosen.write(segments, segment);
    sm90::fence_async_shared();
    __syncwarp();
    if (packs) {
      store_compressed(at.entry, at.token + row, global_head);
    } else if (lane == 0) {
#pragma unroll
      for (int panel = 0; panel < kLanes; ++panel)
        sm90::tma_store_4d(&maps.rows[at.section], shared.rows[head * kLanes + panel] + row * 128,
                           global_head * kD + panel * 64, at.token + row, at.entry, 0);
      sm90::tma_store_commit();
    }
    if (!direct && count > 0) copy_support(out, first_row, global_head, count);
    __syncwarp();  // the scratch is free for the next pass
  }

  /// Pass `i` of 32 rows: one panel of values, or kPassRows of a head.
  __device__ __forceinline__ void run(const ProjectMaps& maps, const ProjectTile& at, int part, int i) const {
    if (at.section == 2) return copy_values(maps, at, part, i);
    const int head = i / kLanes, row = part * 32 + i % kLanes * kPassRows;
    if (at.column + head * kD >= args.width[at.section] || at.token + row >= (args.T + 63) / 64 * 64) return;
    if (at.section == 0 && args.two_of_four)
      pass<true>(maps, at, row, head);
    else
      pass<false>(maps, at, row, head);
  }
};

template <class Config>
__device__ __forceinline__ void select_tiles(const ProjectArgs& args, ProjectStorage<Config>& shared,
                                             const ProjectMaps& maps, int warp, int first, int step, int rank) {
  constexpr int kPasses = kProjectColumns / 64;  // over 32 rows
  const ProjectSelector<Config> selector{args, shared, warp};
  const int tiles = args.row_units * args.columns;
  std::uint32_t parity = 0;
#pragma unroll 1
  for (int index = first; index < tiles; index += step, parity ^= 1) {
    const ProjectTile at = project_tile<Config::kCluster>(args, index, rank);
#pragma unroll 1
    for (int unit = 0; unit < 4 * kPasses; ++unit) {
      const int part = unit / kPasses;
      if (unit % kPasses == 0) sm90::barrier_wait(&shared.staged[part], parity);
      if (selector.own(unit)) selector.run(maps, at, part, unit % kPasses);
      if (unit % kPasses < kPasses - 1) continue;
      __syncwarp();
      if ((threadIdx.x & 31) == 0) {
        sm90::tma_store_wait_read<0>();
        sm90::barrier_arrive(&shared.taken[part]);
      }
    }
  }
  if ((threadIdx.x & 31) == 0) sm90::tma_store_wait<0>();
  __syncwarp();
}

// ------------------------------------------------------------------------------------------------------------ kernel

template <class Config>
__global__ void __cluster_dims__(Config::kCluster, 1, 1) __launch_bounds__(Config::kThreads, 1)
    project_select_kernel(const __grid_constant__ ProjectArgs args, const __grid_constant__ ProjectMaps maps) {
  using namespace sm90;
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<ProjectStorage<Config>*>(memory);
  const int warpgroup = warpgroup_index();
  const int rank = Config::kCluster > 1 ? cluster_rank() : 0;
  const int first = static_cast<int>(blockIdx.x) / Config::kCluster;
  const int step = static_cast<int>(gridDim.x) / Config::kCluster;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], 8 * Config::kCluster);
    }
    for (int i = 0; i < 4; ++i) {
      barrier_init(&shared.staged[i], 2);
      barrier_init(&shared.taken[i], Config::kSelectWarps);
    }
    fence_barrier_init();
  }
  if (threadIdx.x < 16) shared.pairs[threadIdx.x] = stored_pair(threadIdx.x);
  if (args.bias == nullptr && threadIdx.x < kProjectColumns)
    shared.bias[0][threadIdx.x] = shared.bias[1][threadIdx.x] = 0;
  __syncthreads();
  cluster_sync<Config::kCluster>();
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x >> 5), 0);
  if (warpgroup > 0)
    multiply_tiles<Config>(args, shared, warpgroup - 1, first, step);
  else if (warp > 0)
    select_tiles<Config>(args, shared, maps, warp - 1, first, step, rank);
  else if (threadIdx.x == 0)
    produce_stages<Config>(args, shared, maps, first, step, rank);
  __syncwarp();
  cluster_sync<Config::kCluster>();  // nobody arrives at the barriers of a block that has gone
}

}  // namespace sfa::flash
