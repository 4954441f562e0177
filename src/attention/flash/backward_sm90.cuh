// Main kernel of the backward on sm_90a: for one tile of 128 keys, over the query tiles that see it,
//   S^T = K Q^T         dP^T = V dO^T                             (64 keys a warpgroup, operands in shared memory)
//   P^T = exp2(scale_log2 S^T - LSE / ln 2),  dS^T = P^T * (dP^T - D)
//   dV += P^T dO        dK += dS^T Q                              (A from registers, sums stay in registers)
//   dQ_part = dS K                                                (dS through shared memory, each warpgroup a 64 x 64
//   piece)
// Saves nothing; writes dK and dV once a task; dQ leaves in the order described in backward_roles.cuh.
//
// Persistent, 384 threads: warpgroup 0 holds two producers and two writers (a thread each), warpgroups 1 and 2 compute.
// The tensor cores always have work queued: S of the next query tile is issued before dQ and dK of this one are
// awaited, dP runs under the exponentials and dV under dS. The only meeting of the two warpgroups is the one before dQ.
#pragma once

#include <cuda_runtime.h>

#include "attention/flash/backward_roles.cuh"
#include "attention/flash/backward_scores.cuh"
#include "attention/flash/backward_support.cuh"

namespace sfa::flash {

/// Named barriers (0 is __syncthreads).
enum BackwardBarrier : int { kBarrierDs = 1, kBarrierStaging = 2 };  // kBarrierStaging + warpgroup

/// Rounds 8 columns x 2 of a fragment to the A operand of one product step: see sm90_wgmma.cuh.
__device__ __forceinline__ void pack_step(std::uint32_t (&a)[4], const float* d) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = pack_bf16(d[2 * i], d[2 * i + 1]);
}

/// What a consumer thread keeps over a task, and the steps it takes. Everything is inlined into one function.
template <class Tile>
struct BackwardConsumer {
  const BackwardArgs& args;
  BackwardShared<Tile>& shared;
  const int part;  // consumer warpgroup, 0 or 1
  const FragmentPlace place;
  const bool leader = (threadIdx.x & 31) == 0;  // arrives for its warp

  float dk[Tile::kDqk / 2], dv[Tile::kDv / 2];
  float s[Tile::kRows / 2], dp[Tile::kRows / 2], dq[kDqPiece / 128];
  std::uint32_t kept[Tile::kDqk / 64];  // of dK, set in the last step
  std::uint32_t steps_done = 0;         // of all tasks: Q, dO, dS and statistics lie in stage steps_done % 2
  std::uint32_t phases = 0;  // bits 0, 1: fillings of the staging buffers mod 4; 2, 3: parity of their next join;
                             // 4: parity of the next K and V

  __device__ __forceinline__ BackwardConsumer(const BackwardArgs& a, BackwardShared<Tile>& b, int warpgroup)
      : args(a), shared(b), part(warpgroup) {}

  __device__ __forceinline__ void issue_scores(int at) {
    DenseScores<Tile::kDqk, Tile::kRows>::issue(s, sm90::smem_address(shared.k) + part * 64 * 128,
                                                sm90::smem_address(shared.q[at]));
  }

  /// First row of the tile, from this thread's first column on, that sees the key, when rows see all keys before some
  /// end.
  __device__ __forceinline__ int first_row(int key, int tile) const {
    if (key >= args.shape.Tk) return Tile::kRows;
    return args.ranges.causal ? key - args.ranges.query_offset - tile * Tile::kRows - place.column : 0;
  }

  /// Sets S of pairs that are not visible to -inf. With no lower end of a row's keys a key has a first row that sees
  /// it, one comparison an element.
  __device__ __forceinline__ void mask(const BackwardTask& task, int tile) {
    const int key = task.key_tile * kBackwardKeys + part * 64 + place.row;
    if (args.ranges.window == 0 && args.ranges.first_key == nullptr) {
      const int first_low = first_row(key, tile), first_high = first_row(key + 8, tile);
#pragma unroll
      for (int j = 0; j < Tile::kRows / 8; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (8 * j + c < first_low) s[4 * j + c] = -INFINITY;
          if (8 * j + c < first_high) s[4 * j + 2 + c] = -INFINITY;
        }
      return;
    }
#pragma unroll
    for (int j = 0; j < Tile::kRows / 8; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const KeySpan span =
            key_span(args.shape, args.ranges, task.batch, tile * Tile::kRows + 8 * j + place.column + c);
        if (key < span.lo || key >= span.hi) s[4 * j + c] = -INFINITY;
        if (key + 8 < span.lo || key + 8 >= span.hi) s[4 * j + 2 + c] = -INFINITY;
      }
  }

  /// S -> P in bf16, the operand of dV.
  __device__ __forceinline__ void exponentials(std::uint32_t (&p)[Tile::kRows / 16][4]) {
    const float* lse2 = shared.lse2[steps_done % 2] + place.column;
    const float scale = args.scale_log2;
#pragma unroll
    for (int j = 0; j < Tile::kRows / 8; ++j) {
      const float2 lse = *reinterpret_cast<const float2*>(lse2 + 8 * j);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = fmaf(s[4 * j + i], scale, i % 2 == 0 ? -lse.x : -lse.y);
        s[4 * j + i] = i < Tile::kFmaExponentials ? exp2_fma(x) : exp2_mufu(x);
      }
    }
#pragma unroll
    for (int t = 0; t < Tile::kRows / 16; ++t) pack_step(p[t], s + 8 * t);
  }

  /// P, dP -> dS in bf16 as operand of dK and, transposed by reading it so, of dQ in shared memory. P comes rounded:
  /// what dV saw; the f32 values would hold kRows / 2 more registers for an error below that of rounding dS.
  __device__ __forceinline__ void score_gradients(std::uint32_t (&ds)[Tile::kRows / 16][4],
                                                  const std::uint32_t (&p)[Tile::kRows / 16][4]) {
    const float* delta = shared.delta[steps_done % 2] + place.column;
#pragma unroll
    for (int j = 0; j < Tile::kRows / 8; ++j) {
      const float2 d = *reinterpret_cast<const float2*>(delta + 8 * j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const std::uint32_t pair = p[j / 2][j % 2 * 2 + h];
        float* x = dp + 4 * j + 2 * h;
        x[0] = __uint_as_float(pair << 16) * (x[0] - d.x);
        x[1] = __uint_as_float(pair & 0xffff0000u) * (x[1] - d.y);
      }
    }
    const std::uint32_t base = sm90::smem_address(shared.ds[steps_done % 2]) + part * 64 * 128;
#pragma unroll
    for (int t = 0; t < Tile::kRows / 16; ++t) {
      pack_step(ds[t], dp + 8 * t);
      sm90::store_matrix_x4(base + (t / 4) * kBackwardKeys * 128 + place.matrix_offset(t % 4), ds[t][0], ds[t][1],
                            ds[t][2], ds[t][3]);
    }
  }

  /// D += A B with A in registers (keys x rows) and B a tile of query rows, features contiguous.
  template <int kDim>
  __device__ __forceinline__ void issue_rows(float (&d)[kDim / 2], const std::uint32_t (&a)[Tile::kRows / 16][4],
                                             const unsigned char* rows) {
    const std::uint64_t b = sm90::swizzle128_descriptor(sm90::smem_address(rows), Tile::kRows * 128);
#pragma unroll
    for (int t = 0; t < Tile::kRows / 16; ++t)
      sm90::Wgmma<kDim>::template rs<sm90::Major::kMN>(d, a[t], sm90::descriptor_advance(b, t * 2048), 1);
  }

  /// This warpgroup's 64 x 64 of dS K: of 128 rows its 64, of 64 rows all with its 64 features.
  __device__ __forceinline__ void issue_dq() {
    constexpr int kPanel = kBackwardKeys * 128;
    const std::uint64_t a = sm90::swizzle128_descriptor(sm90::smem_address(shared.ds[steps_done % 2]) +
                                                        (Tile::kRows == 128 ? part * kPanel : 0));
    const std::uint64_t b =
        sm90::swizzle128_descriptor(sm90::smem_address(shared.k) + (Tile::kRows == 128 ? 0 : part * kPanel));
#pragma unroll
    for (int t = 0; t < kBackwardKeys / 16; ++t)
      sm90::Wgmma<64>::ss<sm90::Major::kMN, sm90::Major::kMN>(dq, sm90::descriptor_advance(a, t * 2048),
                                                              sm90::descriptor_advance(b, t * 2048), t > 0);
  }

  /// The staging buffer for the next filling, once its writer has emptied it.
  __device__ __forceinline__ int await_staging() {
    const Use<kBackwardWriters> use(phases % 4);
    phases = phases / 4 * 4 + (phases + 1) % 4;
    sm90::barrier_wait(&shared.staging_empty[use.index], use.parity ^ 1);
    return use.index;
  }
  __device__ __forceinline__ void pass_staging(int buffer) {
    sm90::fence_async_shared();
    sm90::barrier_arrive(&shared.staging_full[buffer]);
  }

  /// Hands the piece of dQ to the writer: f32 in fragment order, or the finished bf16 panel, masked by the rows of Q in
  /// stage `at`.
  __device__ __forceinline__ void stage_dq(int flags, int at) {
    const int buffer = await_staging();
    float4* staging = reinterpret_cast<float4*>(shared.staging[buffer][part]) + (threadIdx.x & 127);
    if (flags & kStepFinal) {
      if (flags & kStepJoin) {
        sm90::barrier_wait(&shared.staging_joined[buffer], phases >> (2 + buffer) & 1);
        phases ^= 4u << buffer;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float4 x = staging[i * 128];
          dq[4 * i] += x.x, dq[4 * i + 1] += x.y, dq[4 * i + 2] += x.z, dq[4 * i + 3] += x.w;
        }
        sm90::named_barrier_sync(kBarrierStaging + part, 128);
      }
      const std::uint32_t kept =
          args.sparse ? kept_features(sm90::smem_address(shared.q[at]) + part * 64 * 128, place) : kKeepAll;
      store_panel(sm90::smem_address(shared.staging[buffer][part]), dq, args.scale, place, kept);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        staging[i * 128] = make_float4(dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
    }
    pass_staging(buffer);
  }

  /// What dK of this warpgroup's keys keeps; then K may be overwritten.
  __device__ __forceinline__ void release_keys() {
#pragma unroll
    for (int p = 0; p < Tile::kDqk / 64; ++p)
      kept[p] = args.sparse ? kept_features(sm90::smem_address(shared.k) + (p * kBackwardKeys + part * 64) * 128, place)
                            : kKeepAll;
    __syncwarp();
    if (leader) sm90::barrier_arrive(&shared.k_empty);
  }

  /// S of the tile behind this one.
  __device__ __forceinline__ void issue_next() {
    const Use<kBackwardQueryStages> next(steps_done);
    sm90::barrier_wait(&shared.q_full[next.index], next.parity);
    sm90::wgmma_fence();
    issue_scores(next.index);
    sm90::wgmma_commit();
  }

  /// One query tile. On entry its S has been computed; on exit that of the next one, unless this is the last: then K
  /// and V are released as soon as they are not read any more.
  template <bool kMore>
  __device__ __forceinline__ void step(const BackwardTask& task) {
    const Use<kBackwardQueryStages> stage(steps_done);
    const int flags = shared.step[stage.index];
    sm90::wgmma_pin(s);
    std::uint32_t p[Tile::kRows / 16][4], ds[Tile::kRows / 16][4];

    sm90::barrier_wait(&shared.d_out_full[stage.index], stage.parity);
    sm90::wgmma_fence();
    DenseScores<Tile::kDv, Tile::kRows>::issue(dp, sm90::smem_address(shared.v) + part * 64 * 128,
                                               sm90::smem_address(shared.d_out[stage.index]));
    sm90::wgmma_commit();

    if (flags & kStepMasked << part) mask(task, flags >> kStepFlagBits);
    exponentials(p);
    sm90::wgmma_fence();
    issue_rows<Tile::kDv>(dv, p, shared.d_out[stage.index]);
    sm90::wgmma_commit();

    sm90::wgmma_wait<1>();  // dP
    sm90::wgmma_pin(dp);
    if (!kMore && leader) sm90::barrier_arrive(&shared.v_empty);
    score_gradients(ds, p);
    sm90::fence_async_shared();
    sm90::named_barrier_sync(kBarrierDs, kBackwardConsumers * 128);
    sm90::wgmma_fence();
    issue_dq();
    sm90::wgmma_commit();
    issue_rows<Tile::kDqk>(dk, ds, shared.q[stage.index]);
    sm90::wgmma_commit();

    sm90::wgmma_wait<2>();  // dV
    if (leader) sm90::barrier_arrive(&shared.d_out_empty[stage.index]);
    ++steps_done;
    if constexpr (kMore) issue_next();
    sm90::wgmma_wait<kMore ? 2 : 1>();  // dQ
    sm90::wgmma_pin(dq);
    if constexpr (!kMore) release_keys();
    stage_dq(flags, stage.index);
    sm90::wgmma_wait<0>();  // dK, and S of the next tile
    __syncwarp();
    if (leader) sm90::barrier_arrive(&shared.q_empty[stage.index]);
  }

  __device__ __forceinline__ void store_key_gradients() {
    constexpr int kValuePanels = Tile::kDv / 64;
    int buffer = 0;
#pragma unroll
    for (int p = 0; p < Tile::kGradientPanels; ++p) {
      if (p % Tile::kPanelsAtOnce == 0) buffer = await_staging();
      const std::uint32_t panel =
          sm90::smem_address(shared.staging[buffer][part]) + p % Tile::kPanelsAtOnce * Tile::kPanelBytes;
      if (p < kValuePanels)
        store_panel(panel, dv + p * 32, 1.0f, place, kKeepAll);
      else
        store_panel(panel, dk + (p - kValuePanels) * 32, args.scale, place, kept[p - kValuePanels]);
      if (p % Tile::kPanelsAtOnce == Tile::kPanelsAtOnce - 1 || p == Tile::kGradientPanels - 1) pass_staging(buffer);
    }
  }

  __device__ __forceinline__ void run() {
    TaskReader<Tile> tasks;
    const int ratio = args.shape.H / args.shape.G;
    for (;;) {
      const BackwardTask task = tasks.next(shared);
      if (task.key_tile < 0) return;
#pragma unroll
      for (int i = 0; i < Tile::kDqk / 2; ++i) dk[i] = 0;
#pragma unroll
      for (int i = 0; i < Tile::kDv / 2; ++i) dv[i] = 0;
#pragma unroll
      for (int i = 0; i < Tile::kDqk / 64; ++i) kept[i] = kKeepAll;
      int steps = max(0, task.last - task.first + 1) * ratio;
      if (steps > 0) {
        const Use<kBackwardQueryStages> stage(steps_done);
        sm90::barrier_wait(&shared.q_full[stage.index], stage.parity);
        sm90::barrier_wait(&shared.kv_full, phases >> 4 & 1);
        phases ^= 16;
        sm90::wgmma_fence();
        issue_scores(stage.index);
        sm90::wgmma_commit();
        sm90::wgmma_wait<0>();
#pragma unroll 1
        for (; steps > 1; --steps) step<true>(task);
        step<false>(task);
        sm90::wgmma_pin(dk);
        sm90::wgmma_pin(dv);
      }
      store_key_gradients();
    }
  }
};

template <class Tile>
__global__ void __launch_bounds__(384, 1) backward_kernel(const __grid_constant__ BackwardArgs args) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<BackwardShared<Tile>*>(shared_bytes);
  if (threadIdx.x == 0) backward_init_barriers(shared);
  __syncthreads();
  sm90::wait_for_previous_kernel();

  const int warpgroup = sm90::warpgroup_index();
  if (warpgroup == 0) {
    sm90::registers_shrink<kBackwardProducerRegisters>();
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x >> 5), 0);
    if ((threadIdx.x & 31) == 0) {
      if (warp == 0)
        backward_produce<Tile, true>(args, shared);
      else if (warp == 1)
        backward_produce<Tile, false>(args, shared);
      else
        backward_write(args, shared, warp - 2);
    }
  } else {
    sm90::registers_grow<kBackwardConsumerRegisters>();
    BackwardConsumer<Tile> consumer(args, shared, warpgroup - 1);
    consumer.run();
  }
}

}  // namespace sfa::flash
