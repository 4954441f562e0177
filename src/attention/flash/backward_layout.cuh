// Shared memory, barriers and tasks of the main backward kernel: what its three roles have in common.
//
// A task is one tile of kBackwardKeys keys of one (batch, key/value head); its block visits, for every query head of
// the group, the query tiles that see it, last one first. Tasks are numbered so that heads come in groups
// (heads_together) and, inside a group, low key tiles first: with a causal range those are the longest.
#pragma once

#include <cstdint>

#include "attention/flash/backward_args.cuh"
#include "attention/flash/backward_ranges.cuh"
#include "cuda/sm90.cuh"
#include "cuda/sm90_store.cuh"

namespace sfa::flash {

/// Sizes of one instance.
template <int kDqk_, int kDv_, int kRows_, int kFmaExponentials_>
struct BackwardTile {
  static constexpr int kDqk = kDqk_, kDv = kDv_;
  static constexpr int kRows = kRows_;
  static constexpr int kFmaExponentials = kFmaExponentials_;  // of every four
  static constexpr int kQBytes = kRows * kDqk * 2, kDOutBytes = kRows * kDv * 2;
  static constexpr int kKBytes = kBackwardKeys * kDqk * 2, kVBytes = kBackwardKeys * kDv * 2;
  /// Panels of 64 rows x 64 features that a warpgroup stores of dV and dK, and how many fit into its staging buffer.
  static constexpr int kGradientPanels = (kDqk + kDv) / 64;
  static constexpr int kPanelBytes = 64 * 64 * 2;
  static constexpr int kPanelsAtOnce = kDqPiece * 4 / kPanelBytes;
  static constexpr int kGradientFillings = (kGradientPanels + kPanelsAtOnce - 1) / kPanelsAtOnce;
  static_assert(kRows == 64 || kRows == 128);
  static_assert(kRows * kDqk == 2 * kDqPiece, "a warpgroup's share of dQ is 64 x 64");
  static_assert(kDqk % 64 == 0 && kDv % 64 == 0);
};

struct BackwardTask {
  int key_tile;  // -1: no more work
  int batch;
  int group;        // key/value head
  int first, last;  // query tiles; first > last: none
};

/// What the producer tells about a step, beside the data.
enum StepFlags : int {
  kStepFinal = 1,   // the last addition to this piece of dQ: the block writes dQ itself
  kStepJoin = 2,    // final, and there is a sum of earlier key tiles to add
  kStepMasked = 4,  // << warpgroup: some row does not see some of its keys
  kStepFlagBits = 4
};

template <class Tile>
struct alignas(1024) BackwardShared {
  unsigned char k[Tile::kKBytes];
  unsigned char v[Tile::kVBytes];
  unsigned char q[kBackwardQueryStages][Tile::kQBytes];
  unsigned char d_out[kBackwardQueryStages][Tile::kDOutBytes];
  unsigned char ds[2][kBackwardKeys * Tile::kRows * 2];  // dS^T, a row a key, panels of 64 queries
  unsigned char staging[kBackwardWriters][kBackwardConsumers][kDqPiece * 4];
  float lse2[kBackwardQueryStages][Tile::kRows];
  float delta[kBackwardQueryStages][Tile::kRows];
  BackwardTask task[2];
  int step[kBackwardQueryStages];  // query tile << kStepFlagBits | StepFlags
  sm90::Barrier task_full[2], task_empty[2];
  sm90::Barrier kv_full, k_empty, v_empty;
  sm90::Barrier q_full[kBackwardQueryStages], q_empty[kBackwardQueryStages];
  sm90::Barrier d_out_full[kBackwardQueryStages], d_out_empty[kBackwardQueryStages];
  sm90::Barrier staging_full[kBackwardWriters], staging_empty[kBackwardWriters];
  sm90::Barrier staging_joined[kBackwardWriters];  // earlier sum of dQ has arrived in staging
};

template <class Tile>
__device__ void backward_init_barriers(BackwardShared<Tile>& shared) {
  constexpr int kConsumerWarps = kBackwardConsumers * 4;
  for (int i = 0; i < 2; ++i) {
    sm90::barrier_init(&shared.task_full[i], 1);
    sm90::barrier_init(&shared.task_empty[i], kConsumerWarps * 32 + kBackwardWriters + 1);
  }
  sm90::barrier_init(&shared.kv_full, 2);  // K and V have a producer each
  sm90::barrier_init(&shared.k_empty, kConsumerWarps);
  sm90::barrier_init(&shared.v_empty, kConsumerWarps);
  for (int i = 0; i < kBackwardQueryStages; ++i) {
    sm90::barrier_init(&shared.q_full[i], 1);
    sm90::barrier_init(&shared.q_empty[i], kConsumerWarps);
    sm90::barrier_init(&shared.d_out_full[i], 1);
    sm90::barrier_init(&shared.d_out_empty[i], kConsumerWarps);
  }
  for (int i = 0; i < kBackwardWriters; ++i) {
    sm90::barrier_init(&shared.staging_full[i], kConsumerWarps * 32);
    sm90::barrier_init(&shared.staging_empty[i], 1);
    sm90::barrier_init(&shared.staging_joined[i], 1);
  }
  sm90::fence_barrier_init();
}

/// Buffer and parity of use number `count` of a ring; one register instead of RingState's two, of which every role has
/// few.
template <int kStages>
struct Use {
  std::uint32_t index, parity;
  __device__ __forceinline__ explicit Use(std::uint32_t count) : index(count % kStages), parity(count / kStages % 2) {}
};

/// Every role but the one that draws them reads the tasks through this.
template <class Tile>
struct TaskReader {
  std::uint32_t count = 0;

  __device__ __forceinline__ BackwardTask next(BackwardShared<Tile>& shared) {
    const Use<2> slot(count++);
    sm90::barrier_wait(&shared.task_full[slot.index], slot.parity);
    const BackwardTask task = shared.task[slot.index];
    sm90::barrier_arrive(&shared.task_empty[slot.index]);
    return task;
  }
};

}  // namespace sfa::flash
