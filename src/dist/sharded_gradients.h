// ZeRO-2's gradients: each rank keeps the sum over ranks of the part that it owns, in f32, and no more than three
// blocks of its own gradients at a time. Blocks take turns in the same memory: as soon as backward is through with one,
// its sums are on their way to their owners, while the next is computed in other memory. What lies outside of blocks
// (embeddings, the last norm) has a place of its own, is added up over micro-steps, and summed over ranks in the last.
//
// Owned gradients accumulate over the micro-steps of a step.
#pragma once

#include <vector>

#include "dist/communicator.h"
#include "models/parameters.h"

namespace sfa {

/// Where gradients lie while they are computed.
struct GradientPlaces {
  /// Parameters side by side in the flat buffer and here: a block, or what lies between blocks.
  struct Stretch {
    FlatRange flat;
    std::int64_t place = 0;
    bool shared = false;  // a block, in turns with others
  };
  std::vector<Stretch> stretches;
  std::vector<std::int64_t> offsets;  // a parameter
  std::int64_t size = 0;              // elements in all
};
/// A backward pass works on a block and the one before it in the list, and leaves one behind whose sums are under way.
inline constexpr std::int64_t kBlocksAtATime = 3;
/// Blocks are parameters whose names begin with the same "h.<number>.".
GradientPlaces gradients_in_turns(const ParameterList& list);

class ShardedGradients {
 public:
  /// `working` [places.size] f32 or bf16: what the model is bound to; zero at the beginning of a step. `owned` f32: the
  /// sums of owners[rank].
  ShardedGradients(Communicator& communicator, GradientPlaces places, std::vector<FlatRange> owners,
                   const Tensor& working, const Tensor& owned);
  ~ShardedGradients();
  ShardedGradients(const ShardedGradients&) = delete;
  ShardedGradients& operator=(const ShardedGradients&) = delete;
  /// All ranks, before the first micro-step: sums by copies between cards where they can be (Communicator::share).
  bool share();

  /// As GradientBuckets::final, in every micro-step.
  void final(Context& ctx, std::int64_t begin, std::int64_t end);
  /// At the end of every micro-step, `last` of the step's last: the context waits for what is under way, and all shared
  /// memory is zero again.
  void finish(Context& ctx, bool last);

 private:
  void reduce(Context& ctx, const GradientPlaces::Stretch& stretch);
  void retire(Context& ctx);

  Communicator& communicator_;
  GradientPlaces places_;
  std::vector<FlatRange> owners_;
  Tensor working_, owned_;
  std::vector<GradientPlaces::Stretch> under_way_;
  std::size_t reduced_ = 0;  // stretches, in this micro-step
  bool shared_ = false;
};

}  // namespace sfa
