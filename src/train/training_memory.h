// The memory of training: what the configuration asks for is counted first, without any device, and bound when a run
// begins. `sfa plan`, the check before a run and the run itself go through this one class, so that they can't differ.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "config/config.h"
#include "core/arena.h"
#include "dist/sharded_gradients.h"
#include "models/model.h"
#include "optim/optimizer.h"
#include "train/context_ring.h"

namespace sfa {

/// One row of a memory plan.
struct MemoryPart {
  std::string name;
  std::size_t bytes = 0;
};

class TrainingMemory {
 public:
  /// Counts; allocates nothing. model.vocab_size must be set, and the configuration that of `for_ranks` below. Throws
  /// Error when it can't be trained on the device.
  TrainingMemory(const Config& config, Device device, RankPlace place = {});
  /// Allocates what was counted and points everything at it.
  void bind();

  /// Every arena with its bytes: weights, gradients, optimizer (fp32 masters and moments), batches, activations,
  /// scratch.
  [[nodiscard]] std::vector<MemoryPart> parts() const;
  /// Their sum.
  [[nodiscard]] std::size_t bytes() const;
  [[nodiscard]] const RankPlace& place() const { return place_; }

  /// A micro-batch and its losses on the device.
  struct Io {
    Tensor tokens, targets;  // [B,T] i32
    Tensor first_key;        // i32, as in Ranges; empty without data.document_mask
    Tensor loss_weight;      // [1] f32, as in ModelInput; empty without train.loss_mask
    Tensor losses;           // [B*T] f32
    Tensor loss_total;       // [1]: the bits of a double
    Tensor distance_total;   // the same, of train.distill; empty without it
    Tensor balance_total;    // the same, of model.attention.balance; empty without it
  };

  /// dist.zero: the part of the flat buffer that each rank updates; empty when every rank updates all.
  std::vector<FlatRange> owners;
  /// What the model's gradients lie in: buffers.gradients, or with dist.zero=2 memory in which blocks take turns.
  FlatMemory model_gradients;
  /// dist.context_parallel: the ranks that share sequences with this one; null = none.
  std::unique_ptr<ContextRing> ring;
  GradientPlaces gradient_places;  // dist.zero=2
  Tensor staging;                  // dist.reduce_dtype: what bf16 gradients are summed over ranks in, or empty
  std::unique_ptr<Model> model;
  ModelArenas arenas;
  ParameterBuffers buffers;
  Tensor ema_params;  // train.ema_validation: the average as the model uses it
  std::unique_ptr<Optimizer> optimizer;
  Io io;
  /// CPU: the weights that the model uses are the masters rounded to bf16, and so is every element that an op stores.
  bool round_bf16 = false;

 private:
  void plan();
  [[nodiscard]] std::int64_t rows() const;
  [[nodiscard]] std::int64_t row_tokens() const;
  [[nodiscard]] std::vector<const Arena*> all_arenas() const;

  Config config_;
  RankPlace place_;
  Arena weights_, gradients_, optimizer_memory_, batches_;
};

/// The configuration of one of `ranks` ranks: micro-batches no larger than its share of data.batch_size, and dividing
/// it; with dist.context_parallel the share of its group. Throws Error when the batch can't be shared among so many.
Config for_ranks(Config config, int ranks);

}  // namespace sfa
