// The ranks that share sequences, on the communicator of the whole job: dist.context_parallel neighbouring ranks are
// one ring.
#pragma once

#include "attention/ring/key_ring.h"
#include "attention/ring/ring_attention.h"
#include "config/config.h"
#include "data/sequence_part.h"
#include "dist/communicator.h"

namespace sfa {

/// Which of how many ranks: with dist.zero each keeps a part of the optimizer's state.
struct RankPlace {
  int rank = 0, size = 1;
};

/// A rank's place under dist.context_parallel: groups of ranks share out the batch, the ranks of a group a sequence.
struct GroupPlace {
  int group = 0, groups = 1;
  SequencePart part;
};
GroupPlace group_place(const Config& config, const RankPlace& place);

/// What a rank sends in one hop of one layer with dist.context_parallel, the mean over layers.
RingBytes ring_bytes_a_hop(const Config& config, DType dtype);

class ContextRing final : public KeyRing {
 public:
  explicit ContextRing(const GroupPlace& place)
      : KeyRing(place.part.part, place.part.parts), first_rank_(place.group * place.part.parts) {}
  /// Before the first step. While memory is counted nothing is passed.
  void connect(Communicator& communicator) { communicator_ = &communicator; }

  void pass(Context& ctx, const Tensor& out, const Tensor& in) override;
  void arrived(Context& ctx) override;

  /// Milliseconds that the host waited in here since the last call: on the CPU, where an exchange is through when it
  /// returns.
  double take_wait_ms();
  /// Whether waiting counts: validation's is no training step's.
  void count_waits(bool count) { counts_waits_ = count; }

 private:
  Communicator* communicator_ = nullptr;
  int first_rank_;
  double wait_ms_ = 0;
  bool counts_waits_ = true;
};

}  // namespace sfa
