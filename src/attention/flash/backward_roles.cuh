// The single-thread roles of the main backward kernel: two producers that fill shared memory, and two writers that
// empty the staging buffers, one each, and keep the additions to dQ in order.
//
// Order of dQ. A query tile's dQ is a sum over key tiles that different blocks hold. It is added up in f32 in the
// workspace in the order of the key tiles: the first one stores, the next ones add (bulk reduction in L2), each after
// `turn` says that its predecessor has finished; the last one reads the sum back and writes dQ in bf16. So bits do not
// depend on timing, no pass zeroes or converts the sum, and nothing but a staging buffer waits for the predecessor.
// K, V and the gradients pass through L2 once, as the first to leave it; Q, dO and the sums of dQ are met again by the
// next key tiles.
// A block waits only for lower tasks, and tasks are taken in order, so the lowest unfinished task always runs on.
#pragma once

#include "attention/flash/backward_layout.cuh"

namespace sfa::flash {

__device__ __forceinline__ BackwardTask backward_task_at(const BackwardArgs& args, int index) {
  const int units = args.shape.B * args.shape.G;
  if (index >= units * args.key_tiles) return {-1, 0, 0, 0, -1};
  const int block = index / (args.heads_together * args.key_tiles);
  const int inside = index - block * args.heads_together * args.key_tiles;
  const int width = min(args.heads_together, units - block * args.heads_together);
  const int key_tile = inside / width;
  const int unit = block * args.heads_together + inside - key_tile * width;
  const int batch = unit / args.shape.G;
  const KeyTile span = args.workspace.key_tile[batch * args.key_tiles + key_tile];
  return {key_tile, batch, unit - batch * args.shape.G, span.first, span.last};
}

/// What the consumers are told about a step.
__device__ __forceinline__ int step_word(const BackwardArgs& args, const BackwardTask& task, int tile) {
  const QueryTile span = args.workspace.query_tile[task.batch * args.query_tiles + tile];
  int flags = 0;
#pragma unroll
  for (int part = 0; part < kBackwardConsumers; ++part) {
    const int half = task.key_tile * kBackwardConsumers + part;
    if (half < span.full_first || half >= span.full_end) flags |= kStepMasked << part;
  }
  if (task.key_tile == span.last_tile())
    flags |= task.key_tile > span.first_tile() ? kStepFinal | kStepJoin : kStepFinal;
  return tile << kStepFlagBits | flags;
}

/// Loads one of the two pairs of operands: Q with LSE, and K (kScores), or dO with D, and V. Splitting them over two
/// threads keeps each within 24 registers. The one for Q also draws the tasks and tells everybody.
template <class Tile, bool kScores>
__device__ void backward_produce(const BackwardArgs& args, BackwardShared<Tile>& shared) {
  constexpr int kPanels = (kScores ? Tile::kDqk : Tile::kDv) / 64;
  const int ratio = args.shape.H / args.shape.G;
  std::uint32_t tasks = 0, steps = 0, key_tiles = 0;
  for (;; ++tasks) {
    const Use<2> slot(tasks);
    BackwardTask task;
    if constexpr (kScores) {
      task = backward_task_at(args, atomicAdd(args.workspace.next_task, 1));
      sm90::barrier_wait(&shared.task_empty[slot.index], slot.parity ^ 1);
      shared.task[slot.index] = task;
      sm90::barrier_arrive(&shared.task_full[slot.index]);
    } else {
      sm90::barrier_wait(&shared.task_full[slot.index], slot.parity);
      task = shared.task[slot.index];
      sm90::barrier_arrive(&shared.task_empty[slot.index]);
    }
    if (task.key_tile < 0) return;
    bool need_keys = true;
    for (int head = task.group * ratio; head < (task.group + 1) * ratio; ++head) {
      for (int tile = task.last; tile >= task.first; --tile, ++steps) {
        const Use<kBackwardQueryStages> stage(steps);
        sm90::Barrier* full = kScores ? &shared.q_full[stage.index] : &shared.d_out_full[stage.index];
        int step = 0;
        if constexpr (kScores) step = step_word(args, task, tile);
        sm90::barrier_wait(kScores ? &shared.q_empty[stage.index] : &shared.d_out_empty[stage.index], stage.parity ^ 1);
        if constexpr (kScores) shared.step[stage.index] = step;
        sm90::barrier_expect(full, (kScores ? Tile::kQBytes : Tile::kDOutBytes) + Tile::kRows * 4);
        unsigned char* rows = kScores ? shared.q[stage.index] : shared.d_out[stage.index];
#pragma unroll
        for (int p = 0; p < kPanels; ++p)
          sm90::tma_load_4d(rows + p * Tile::kRows * 128, kScores ? &args.q : &args.d_out, full, p * 64,
                            tile * Tile::kRows, head, task.batch);
        const std::int64_t at =
            (static_cast<std::int64_t>(task.batch * args.shape.H + head) * args.query_tiles + tile) * Tile::kRows;
        sm90::tma_load_bulk(kScores ? shared.lse2[stage.index] : shared.delta[stage.index],
                            (kScores ? args.workspace.lse2 : args.workspace.delta) + at, Tile::kRows * 4, full);
        if (need_keys) {
          need_keys = false;
          sm90::barrier_wait(kScores ? &shared.k_empty : &shared.v_empty, key_tiles++ % 2 ^ 1);
          sm90::barrier_expect(&shared.kv_full, kScores ? Tile::kKBytes : Tile::kVBytes);
          rows = kScores ? shared.k : shared.v;
#pragma unroll
          for (int p = 0; p < kPanels; ++p)
            sm90::tma_load_4d(rows + p * kBackwardKeys * 128, kScores ? &args.k : &args.v, &shared.kv_full, p * 64,
                              task.key_tile * kBackwardKeys, task.group, task.batch, sm90::kEvictFirst);
        }
      }
    }
  }
}

/// One step of a writer: dQ of query tile `tile`, both warpgroups' pieces. Everything here is latency, about one step
/// long, which is why two writers take turns.
template <class Tile>
__device__ __forceinline__ void write_dq(const BackwardArgs& args, BackwardShared<Tile>& shared,
                                         const BackwardTask& task, int head, int tile,
                                         const Use<kBackwardWriters>& use) {
  constexpr std::uint32_t kBytes = kBackwardConsumers * kDqPiece * 4;
  const QueryTile span = args.workspace.query_tile[task.batch * args.query_tiles + tile];
  const std::int64_t at = static_cast<std::int64_t>(task.batch * args.shape.H + head) * args.query_tiles + tile;
  float* sum = args.workspace.dq_sum + at * (kBackwardConsumers * kDqPiece);
  int* turn = args.workspace.turn + at;
  const int before = task.key_tile - span.first_tile();  // key tiles whose share comes first
  auto* staging = shared.staging[use.index];
  const bool final = task.key_tile == span.last_tile();

  if (before > 0) {
    while (sm90::load_acquire(turn) != before) {
    }
    sm90::fence_async_all();
  }
  if (final && before > 0) {
    sm90::barrier_expect(&shared.staging_joined[use.index], kBytes);
    sm90::tma_load_bulk(staging, sum, kBytes, &shared.staging_joined[use.index]);
  }
  sm90::barrier_wait(&shared.staging_full[use.index], use.parity);
  if (final) {
#pragma unroll
    for (int part = 0; part < kBackwardConsumers; ++part)
      sm90::tma_store_4d_streaming(&args.d_q, staging[part], Tile::kRows == 128 ? 0 : part * 64,
                                   tile * Tile::kRows + (Tile::kRows == 128 ? part * 64 : 0), head, task.batch);
  } else if (before > 0) {
    sm90::tma_reduce_add_bulk_f32(sum, staging, kBytes);
  } else {
    sm90::tma_store_bulk(sum, staging, kBytes);
  }
  sm90::tma_store_commit();
  sm90::tma_store_wait_read<0>();
  sm90::barrier_arrive(&shared.staging_empty[use.index]);
  if (!final) {
    sm90::tma_store_wait<0>();
    sm90::fence_async_all();
    sm90::store_release(turn, before + 1);
  }
}

/// dV and dK of a task, filling number `filling` of the staging buffers, of BackwardTile::kGradientFillings.
template <class Tile>
__device__ __forceinline__ void write_key_gradients(const BackwardArgs& args, BackwardShared<Tile>& shared,
                                                    const BackwardTask& task, int filling,
                                                    const Use<kBackwardWriters>& use) {
  constexpr int kValuePanels = Tile::kDv / 64;
  sm90::barrier_wait(&shared.staging_full[use.index], use.parity);
#pragma unroll
  for (int i = 0; i < Tile::kPanelsAtOnce; ++i) {
    const int p = filling * Tile::kPanelsAtOnce + i;
    if (p >= Tile::kGradientPanels) break;
#pragma unroll
    for (int part = 0; part < kBackwardConsumers; ++part)
      sm90::tma_store_4d_streaming(p < kValuePanels ? &args.d_v : &args.d_k,
                                   shared.staging[use.index][part] + i * Tile::kPanelBytes,
                                   (p < kValuePanels ? p : p - kValuePanels) * 64,
                                   task.key_tile * kBackwardKeys + part * 64, task.group, task.batch);
  }
  sm90::tma_store_commit();
  sm90::tma_store_wait_read<0>();
  sm90::barrier_arrive(&shared.staging_empty[use.index]);
}

/// Writer `mine` empties buffer `mine`: every kBackwardWriters-th filling.
template <class Tile>
__device__ void backward_write(const BackwardArgs& args, BackwardShared<Tile>& shared, int mine) {
  TaskReader<Tile> tasks;
  std::uint32_t filling = 0;
  const int ratio = args.shape.H / args.shape.G;
  for (;;) {
    const BackwardTask task = tasks.next(shared);
    if (task.key_tile < 0) break;
    for (int head = task.group * ratio; head < (task.group + 1) * ratio; ++head)
      for (int tile = task.last; tile >= task.first; --tile, ++filling) {
        const Use<kBackwardWriters> use(filling);
        if (use.index == mine) write_dq(args, shared, task, head, tile, use);
      }
    for (int i = 0; i < Tile::kGradientFillings; ++i, ++filling) {
      const Use<kBackwardWriters> use(filling);
      if (use.index == mine) write_key_gradients(args, shared, task, i, use);
    }
  }
  sm90::tma_store_wait<0>();
}

}  // namespace sfa::flash
