// The forward core for sm_90a: O = softmax(scale Q K^T) V and LSE over the key ranges of flash_params.h.
//
// One persistent block an SM (or two). A producer warp streams tiles by TMA: the query operand, K blocks and V blocks,
// each through its own ring of buffers with a full and an empty barrier a stage. Each consumer warpgroup owns 64 query
// rows and walks the key blocks from the last to the first, with the online softmax in base 2:
//   S = Q K_n^T  ->  m' = max(m, rowmax S)  ->  P = 2^(c S - c m'),  l = l 2^(c m - c m') + rowsum P,  O = O 2^(...) +
//   P V_n
// With kOverlap the products S_n and P_(n+1) V_(n+1) are in flight together while the softmax of block n waits only for
// the first. Warpgroups take turns at issuing products (kTurns), so that one's softmax runs under another's products.
// m is replaced only when it grows by more than kRescaleBits: until then P stays below 2^kRescaleBits, exact in the
// ratio, and O need not be rescaled. Saves LSE; accumulates O in registers.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "attention/flash/forward_policy.cuh"
#include "attention/flash/forward_schedule.cuh"
#include "attention/flash/forward_softmax.cuh"
#include "cuda/sm90.cuh"

namespace sfa::flash {

/// What one instance of the kernel is made of; forward_tuning.h has the values in use.
template <int kDqk_, int kDv_, int kWarpgroups_, int kKeys_, int kStages_, int kBlocksPerSm_, bool kOverlap_,
          bool kTurns_, int kFmaPeriod_, template <int, int, int> class QueryPolicy>
struct ForwardConfig {
  static constexpr int kDqk = kDqk_, kDv = kDv_;
  static constexpr int kWarpgroups = kWarpgroups_;  // consumers
  static constexpr int kRows = 64 * kWarpgroups;
  static constexpr int kKeys = kKeys_;  // a block of keys
  static constexpr int kStages = kStages_;
  static constexpr int kBlocksPerSm = kBlocksPerSm_;
  static constexpr bool kOverlap = kOverlap_;
  static constexpr bool kTurns = kTurns_ && kWarpgroups > 1;
  static constexpr int kFmaPeriod = kFmaPeriod_;  // every kFmaPeriod-th exponential runs on the FMA units; 0: none
  using Policy = QueryPolicy<kDqk, kRows, kKeys>;

  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kLaunchRegisters = 65536 / (kThreads * kBlocksPerSm) / 8 * 8;
  static constexpr int kProducerRegisters = kWarpgroups == 2 && kBlocksPerSm == 1 ? 40 : 32;
  static constexpr int kConsumerRegisters =
      (kLaunchRegisters * (kWarpgroups + 1) - kProducerRegisters) / kWarpgroups / 8 * 8 > 240
          ? 240
          : (kLaunchRegisters*(kWarpgroups + 1) - kProducerRegisters) / kWarpgroups / 8 * 8;
  static constexpr int kQkPanels = (kDqk + 63) / 64, kValuePanels = (kDv + 63) / 64;  // rows of 64 features
  static constexpr int kKeyBytes = kKeys * kQkPanels * 128;
  static constexpr int kValueBytes = kKeys * kValuePanels * 128;
  /// Whether O is staged for TMA where the queries were, which then stay until O has left: at 192 and 256 features
  /// there is no room for both beside two blocks of K and V.
  static constexpr bool kOutInQuery = Policy::kHoldsTile && kDqk >= kDv && kDv > 128;
  static constexpr int kOutPanelBytes = (kOutInQuery ? kRows : 64) * 128;
  static constexpr int kOutBytes = kOutInQuery ? 0 : 64 * kValuePanels * 128;  // a warpgroup
  // Rows whose diagonal lies in the first half of their last block need only that half of its scores.
  static constexpr int kHalfKeys = kKeys % 64 == 0 && kKeys > 64 ? kKeys / 2 : 0;
};

template <class Config>
struct alignas(1024) ForwardStorage {
  unsigned char keys[Config::kStages][Config::kKeyBytes];
  unsigned char values[Config::kStages][Config::kValueBytes];
  alignas(1024) unsigned char query[Config::Policy::kTileBytes];
  alignas(1024) unsigned char out[Config::kOutInQuery ? 16 : Config::kWarpgroups * Config::kOutBytes];
  sm90::Barrier key_full[Config::kStages], key_empty[Config::kStages];
  sm90::Barrier value_full[Config::kStages], value_empty[Config::kStages];
  sm90::Barrier query_full, query_empty;
  int tile;  // written by the producer before query_full; -1: no more work
};

/// Named barriers: 1 + w is warpgroup w's turn, 1 + kWarpgroups + w its own rendezvous.
template <class Config>
struct Turns {
  static __device__ __forceinline__ void take(int warpgroup) {
    if constexpr (Config::kTurns) sm90::named_barrier_sync(1 + warpgroup, 256);
  }
  static __device__ __forceinline__ void pass(int warpgroup) {
    if constexpr (Config::kTurns)
      sm90::named_barrier_arrive(1 + (warpgroup + 1 == Config::kWarpgroups ? 0 : warpgroup + 1), 256);
  }
};

// ---------------------------------------------------------------------------------------------------------- producer

template <class Config>
__device__ __forceinline__ void produce(const ForwardArgs& args, ForwardStorage<Config>& shared,
                                        const CUtensorMap* q_map, const CUtensorMap* k_map, const CUtensorMap* v_map) {
  using namespace sm90;
  RingCounter<Config::kStages> keys, values;
  std::uint32_t query_parity = 0;
  int round = 0;
  int index = args.tile_counter != nullptr ? static_cast<int>(blockIdx.x) : dealt_tile(args, 0);
  if (index >= args.tiles) index = -1;
  while (true) {
    barrier_wait(&shared.query_empty, query_parity ^ 1);
    shared.tile = index;
    if (index < 0) {
      barrier_arrive(&shared.query_full);
      break;
    }
    const Tile at = tile_at<Config::kRows>(args, index);
    Config::Policy::fetch(args, q_map, shared.query, &shared.query_full, at);
    query_parity ^= 1;
    int next;
    if (args.tile_counter != nullptr) {
      next = static_cast<int>(gridDim.x) + atomicAdd(args.tile_counter, 1);
      if (next >= args.tiles) next = -1;
    } else {
      next = dealt_tile(args, ++round);
    }

    const int last_row = min(at.row + Config::kRows, args.shape.Tq) - 1;
    const BlockRange blocks =
        block_range<Config::kKeys>(key_range(args, at.batch, at.row).lo, key_range(args, at.batch, last_row).hi);
    const int kv_head = at.head / (args.shape.H / args.shape.G);
    const auto load_values = [&](int n) {
      barrier_wait(&shared.value_empty[values.index()], values.parity() ^ 1);
      barrier_expect(&shared.value_full[values.index()], Config::kValueBytes);
#pragma unroll
      for (int panel = 0; panel < Config::kValuePanels; ++panel)
        tma_load_4d(shared.values[values.index()] + panel * Config::kKeys * 128, v_map,
                    &shared.value_full[values.index()], panel * 64, n * Config::kKeys, kv_head, at.batch, kEvictLast);
      values.advance();
    };
    for (int n = blocks.end - 1; n >= blocks.begin; --n) {
      barrier_wait(&shared.key_empty[keys.index()], keys.parity() ^ 1);
      barrier_expect(&shared.key_full[keys.index()], Config::kKeyBytes);
#pragma unroll
      for (int panel = 0; panel < Config::kQkPanels; ++panel)
        tma_load_4d(shared.keys[keys.index()] + panel * Config::kKeys * 128, k_map, &shared.key_full[keys.index()],
                    panel * 64, n * Config::kKeys, kv_head, at.batch, kEvictLast);
      keys.advance();
      if (n + 1 < blocks.end) load_values(n + 1);  // consumers want S of a block before V of the one before
    }
    if (blocks.end > blocks.begin) load_values(blocks.begin);
    index = next;
  }
  if (args.tile_counter != nullptr && atomicAdd(args.tile_counter + 1, 1) == static_cast<int>(gridDim.x) - 1) {
    args.tile_counter[0] = 0;  // every block has drawn its last tile
    args.tile_counter[1] = 0;
  }
}

// ---------------------------------------------------------------------------------------------------------- consumer

/// O += P V, V as panels of 64 columns x kKeys rows.
template <class Config>
__device__ __forceinline__ void issue_values(float (&o)[Config::kDv / 2],
                                             const std::uint32_t (&p)[Config::kKeys / 16][4],
                                             const unsigned char* values) {
  const std::uint64_t v = sm90::swizzle128_descriptor(sm90::smem_address(values), Config::kKeys * 128);
#pragma unroll
  for (int step = 0; step < Config::kKeys / 16; ++step)
    sm90::Wgmma<Config::kDv>::template rs<sm90::Major::kMN>(o, p[step], sm90::descriptor_advance(v, step * 2048), 1);
}

/// What a warpgroup knows of its 64 rows of a tile.
template <class Config>
struct WarpgroupRows {
  BlockRange tile;     // blocks that the producer streams
  BlockRange own;      // those that these rows need
  int unmasked_begin;  // blocks in [unmasked_begin, unmasked_end) are seen whole by every row
  int unmasked_end;
  int last_hi;  // first key beyond what the last row sees
  int batch;
  int thread_row;  // this thread's first row; the second is 8 further

  __device__ __forceinline__ WarpgroupRows(const ForwardArgs& args, const Tile& at, int warpgroup) {
    constexpr int kKeys = Config::kKeys;
    const int last = args.shape.Tq - 1;
    tile = block_range<kKeys>(key_range(args, at.batch, at.row).lo,
                              key_range(args, at.batch, min(at.row + Config::kRows - 1, last)).hi);
    const int first_row = at.row + warpgroup * 64;
    const int last_row = min(first_row + 63, last);
    const KeyRange first = key_range(args, at.batch, first_row), final = key_range(args, at.batch, last_row);
    own = block_range<kKeys>(first.lo, final.hi);
    own.begin = max(own.begin, tile.begin);
    own.end = min(own.end, tile.end);
    if (first_row > last || own.end < own.begin) own.begin = own.end = tile.begin;
    unmasked_begin = (final.lo + kKeys - 1) / kKeys;
    unmasked_end = first.hi / kKeys;
    last_hi = final.hi;
    batch = at.batch;
    thread_row = first_row + ((threadIdx.x >> 5) & 3) * 16 + ((threadIdx.x & 31) >> 2);
  }

  __device__ __forceinline__ bool masked(int n) const { return n < unmasked_begin || n >= unmasked_end; }
};

/// One consumer warpgroup: registers, ring positions and the steps over key blocks.
template <class Config>
struct Consumer {
  using Policy = typename Config::Policy;
  ForwardStorage<Config>& shared;
  const int warpgroup;
  sm90::RingCounter<Config::kStages> keys, values;
  float o[Config::kDv / 2];
  std::uint32_t p[Config::kKeys / 16][4];
  typename Policy::Fragment query;
  SoftmaxState softmax;

  __device__ __forceinline__ Consumer(ForwardStorage<Config>& storage, int index) : shared(storage), warpgroup(index) {}

  __device__ __forceinline__ static void release(sm90::Barrier* barrier) {
    if ((threadIdx.x & 31) == 0) sm90::barrier_arrive(barrier);
  }
  __device__ __forceinline__ void release_keys() {
    release(&shared.key_empty[keys.index()]);
    keys.advance();
  }
  __device__ __forceinline__ void release_values() {
    release(&shared.value_empty[values.index()]);
    values.advance();
  }
  __device__ __forceinline__ void wait_keys() { sm90::barrier_wait(&shared.key_full[keys.index()], keys.parity()); }
  /// Left alone, ptxas moves the wait for P V in front of the exponentials, and nothing overlaps. So the wait for the
  /// next keys, which comes between them, is made to depend on the sums: they are never negative, but ptxas does not
  /// know.
  __device__ __forceinline__ void wait_keys_after_softmax() {
    const std::uint32_t never = softmax.sum[0] + softmax.sum[1] < 0.0f ? 1 : 0;
    sm90::barrier_wait(&shared.key_full[keys.index()], keys.parity() ^ never);
  }
  __device__ __forceinline__ void wait_values() {
    sm90::barrier_wait(&shared.value_full[values.index()], values.parity());
  }

  /// A block that other warpgroups need and this one does not.
  __device__ __forceinline__ void skip() {
    Turns<Config>::take(warpgroup);
    Turns<Config>::pass(warpgroup);
    wait_keys();
    release_keys();
    wait_values();
    release_values();
  }

  __device__ __forceinline__ int thread_column(int n) const { return n * Config::kKeys + 2 * (threadIdx.x & 3); }

  /// S of block n and its softmax with nothing of this warpgroup beside it: the first block of a tile, or every block
  /// without kOverlap.
  template <int kColumns>
  __device__ __forceinline__ void scores(const ForwardArgs& args, const WarpgroupRows<Config>& rows, int n) {
    float s[kColumns / 2];
    wait_keys();
    Turns<Config>::take(warpgroup);
    sm90::wgmma_fence();
    Policy::template issue<kColumns>(s, query, sm90::smem_address(shared.keys[keys.index()]));
    sm90::wgmma_commit();
    Turns<Config>::pass(warpgroup);
    sm90::wgmma_wait<0>();
    sm90::wgmma_pin(s);
    release_keys();
    if (rows.masked(n)) apply_mask<kColumns>(s, args, rows.batch, rows.thread_row, thread_column(n));
    float factor[2];
    softmax_step<kColumns, Config::kFmaPeriod>(s, softmax, args.scale_log2, factor);
    if constexpr (!Config::kOverlap) rescale(o, factor);
    if (Config::kOverlap && n > rows.own.begin) wait_keys();
    pack_probabilities<Config::kKeys, kColumns>(p, s);
  }

  /// The last block that these rows see, of which they may need only half.
  __device__ __forceinline__ void first_scores(const ForwardArgs& args, const WarpgroupRows<Config>& rows, int n) {
    if constexpr (Config::kHalfKeys > 0) {
      if (rows.last_hi - n * Config::kKeys <= Config::kHalfKeys) return scores<Config::kHalfKeys>(args, rows, n);
    }
    scores<Config::kKeys>(args, rows, n);
  }

  /// S of block n beside P V of block n + 1, then softmax of n.
  __device__ __forceinline__ void scores_beside_values(const ForwardArgs& args, const WarpgroupRows<Config>& rows,
                                                       int n) {
    float s[Config::kKeys / 2];
    float factor[2];
    Turns<Config>::take(warpgroup);
    sm90::wgmma_fence();
    Policy::template issue<Config::kKeys>(s, query, sm90::smem_address(shared.keys[keys.index()]));
    sm90::wgmma_commit();
    wait_values();
    sm90::wgmma_fence();
    issue_values<Config>(o, p, shared.values[values.index()]);
    sm90::wgmma_commit();
    Turns<Config>::pass(warpgroup);
    sm90::wgmma_wait<1>();
    sm90::wgmma_pin(s);
    release_keys();
    if (rows.masked(n)) apply_mask<Config::kKeys>(s, args, rows.batch, rows.thread_row, thread_column(n));
    softmax_step<Config::kKeys, Config::kFmaPeriod>(s, softmax, args.scale_log2, factor);
    if (n > rows.own.begin) wait_keys_after_softmax();
    sm90::wgmma_wait<0>();
    sm90::wgmma_pin(o);
    release_values();
    rescale(o, factor);
    pack_probabilities<Config::kKeys, Config::kKeys>(p, s);
  }

  __device__ __forceinline__ void add_values() {
    wait_values();
    sm90::wgmma_fence();
    issue_values<Config>(o, p, shared.values[values.index()]);
    sm90::wgmma_commit();
    sm90::wgmma_wait<0>();
    sm90::wgmma_pin(o);
    release_values();
  }

  __device__ __forceinline__ void run_tile(const ForwardArgs& args, const WarpgroupRows<Config>& rows) {
#pragma unroll
    for (int i = 0; i < Config::kDv / 2; ++i) o[i] = 0.0f;
    softmax = SoftmaxState{};
    int n = rows.tile.end - 1;
    for (; n >= rows.own.end; --n) skip();
    if (n >= rows.own.begin) {
      if constexpr (Config::kOverlap) {
        first_scores(args, rows, n);
#pragma unroll 1
        for (--n; n >= rows.own.begin; --n) scores_beside_values(args, rows, n);
        add_values();
      } else {
        if constexpr (Config::kHalfKeys > 0) {
          first_scores(args, rows, n--);
          add_values();
        }
#pragma unroll 1
        for (; n >= rows.own.begin; --n) {
          scores<Config::kKeys>(args, rows, n);
          add_values();
        }
      }
    }
    for (; n >= rows.tile.begin; --n) skip();
  }

  /// O / l in bf16 through shared memory to TMA, which drops rows beyond Tq; LSE directly.
  __device__ __forceinline__ void store(const ForwardArgs& args, const Tile& at, const CUtensorMap* out_map) {
    const int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) & 3;
    const int first_row = at.row + warpgroup * 64;
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float l = softmax.sum[h];
      l += __shfl_xor_sync(0xffffffffu, l, 1);
      l += __shfl_xor_sync(0xffffffffu, l, 2);
      const bool empty = softmax.maximum[h] == kMasked;
      inverse[h] = empty ? 0.0f : 1.0f / l;
      const int row = first_row + warp * 16 + (lane >> 2) + 8 * h;
      constexpr float kLn2 = 0.693147180559945309f;
      if ((lane & 3) == 0 && row < args.shape.Tq)
        args.lse[(static_cast<std::int64_t>(at.batch) * args.shape.H + at.head) * args.shape.Tq + row] =
            empty ? -INFINITY : (softmax.maximum[h] * args.scale_log2 + __log2f(l)) * kLn2;
    }
    unsigned char* staging =
        Config::kOutInQuery ? shared.query + warpgroup * 64 * 128 : shared.out + warpgroup * Config::kOutBytes;
    const bool leader = (threadIdx.x & 127) == 0;
    if (leader) sm90::tma_store_wait_read<0>();  // the previous tile has left the staging buffer
    sm90::named_barrier_sync(1 + Config::kWarpgroups + warpgroup, 128);
    const std::uint32_t row = warp * 16 + (lane & 15);
#pragma unroll
    for (int j = 0; j < Config::kDv / 8; j += 2) {
      const std::uint32_t chunk = j + (lane >> 4);
      const std::uint32_t address =
          sm90::smem_address(staging) + (chunk / 8) * Config::kOutPanelBytes + sm90::swizzle128_offset(row, chunk % 8);
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                   "r"(pack_bf16(o[4 * j] * inverse[0], o[4 * j + 1] * inverse[0])),
                   "r"(pack_bf16(o[4 * j + 2] * inverse[1], o[4 * j + 3] * inverse[1])),
                   "r"(pack_bf16(o[4 * j + 4] * inverse[0], o[4 * j + 5] * inverse[0])),
                   "r"(pack_bf16(o[4 * j + 6] * inverse[1], o[4 * j + 7] * inverse[1]))
                   : "memory");
    }
    sm90::fence_async_shared();
    sm90::named_barrier_sync(1 + Config::kWarpgroups + warpgroup, 128);
    if (leader && first_row < args.shape.Tq) {
#pragma unroll
      for (int panel = 0; panel < Config::kValuePanels; ++panel)
        sm90::tma_store_4d(out_map, staging + panel * Config::kOutPanelBytes, panel * 64, first_row, at.head, at.batch);
      sm90::tma_store_commit();
    }
  }
};

template <class Config>
__device__ __forceinline__ void consume(const ForwardArgs& args, ForwardStorage<Config>& shared, int warpgroup,
                                        const CUtensorMap* out_map) {
  Consumer<Config> consumer(shared, warpgroup);
  if (warpgroup == Config::kWarpgroups - 1) Turns<Config>::pass(warpgroup);  // warpgroup 0 has the first turn
  std::uint32_t query_parity = 0;
  while (true) {
    sm90::barrier_wait(&shared.query_full, query_parity);
    query_parity ^= 1;
    const int index = shared.tile;
    if (index < 0) break;
    __syncwarp();  // every lane has read it before lane 0 releases the tile, also where nothing else brings them
                   // together
    const Tile at = tile_at<Config::kRows>(args, index);
    Config::Policy::load(consumer.query, shared.query, warpgroup);
    if constexpr (!Config::Policy::kHoldsTile) {
      __syncwarp();
      consumer.release(&shared.query_empty);
    }
    const WarpgroupRows<Config> rows(args, at, warpgroup);
    consumer.run_tile(args, rows);
    if constexpr (Config::Policy::kHoldsTile && !Config::kOutInQuery) consumer.release(&shared.query_empty);
    consumer.store(args, at, out_map);
    if constexpr (Config::kOutInQuery) {
      if ((threadIdx.x & 127) == 0) sm90::tma_store_wait_read<0>();
      consumer.release(&shared.query_empty);
    }
  }
  if ((threadIdx.x & 127) == 0) sm90::tma_store_wait<0>();
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    forward_kernel(const __grid_constant__ ForwardArgs args, const __grid_constant__ CUtensorMap q_map,
                   const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
                   const __grid_constant__ CUtensorMap out_map) {
  using namespace sm90;
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardStorage<Config>*>(memory);
  const int warpgroup = warpgroup_index();
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      barrier_init(&shared.key_full[i], 1);
      barrier_init(&shared.value_full[i], 1);
      barrier_init(&shared.key_empty[i], 4 * Config::kWarpgroups);
      barrier_init(&shared.value_empty[i], 4 * Config::kWarpgroups);
    }
    barrier_init(&shared.query_full, 1);
    barrier_init(&shared.query_empty, 4 * Config::kWarpgroups);
    fence_barrier_init();
    tma_prefetch_map(&q_map);
    tma_prefetch_map(&k_map);
    tma_prefetch_map(&v_map);
    tma_prefetch_map(&out_map);
  }
  __syncthreads();
  if (warpgroup == 0) {
    registers_shrink<Config::kProducerRegisters>();
    if (threadIdx.x == 0) produce<Config>(args, shared, &q_map, &k_map, &v_map);
  } else {
    registers_grow<Config::kConsumerRegisters>();
    consume<Config>(args, shared, warpgroup - 1, &out_map);
  }
}

}  // namespace sfa::flash
