// Sums gradients over ranks in buckets along the flat buffer, while backward still runs: what is final is collected,
// and each time it fills a bucket its sum is queued on the communicator.
#pragma once

#include <vector>

#include "dist/communicator.h"

namespace sfa {

class GradientBuckets {
 public:
  struct Options {
    std::int64_t bucket_elements = 0;
    /// ZeRO: rank r needs the sums of owners[r] alone. Empty = every rank needs all.
    std::vector<FlatRange> owners;
    /// f32: bf16 gradients are summed in it, a stretch of its length at a time, and rounded once. Empty = summed as
    /// they are.
    Tensor staging = {};
  };
  /// `gradients` is the flat buffer, f32 or bf16.
  GradientBuckets(Communicator& communicator, const Tensor& gradients, Options options);

  /// Behind the context's work the gradients of [begin, end) are what they will be in this step.
  void final(Context& ctx, std::int64_t begin, std::int64_t end);
  /// Queues what is left, and makes the context wait for all sums; the next step begins.
  void finish(Context& ctx);

 private:
  void reduce(Context& ctx, const FlatRange& range);
  void sum(Context& ctx, const FlatRange& range, const Tensor& values);
  void settle(Context& ctx);

  Communicator& communicator_;
  Tensor gradients_;
  Options options_;
  FlatRange pending_;              // final, not queued yet
  FlatRange staged_;               // under way in the staging memory
  std::vector<FlatRange> queued_;  // of this step
};

}  // namespace sfa
