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
  };
  /// `gradients` is the flat buffer, f32 or bf16.
  GradientBuckets(Communicator& communicator, const Tensor& gradients, Options options);

  /// Behind the context's work the gradients of [begin, end) are what they will be in this step.
  void final(Context& ctx, std::int64_t begin, std::int64_t end);
  /// Queues what is left, and makes the context wait for all sums; the next step begins.
  void finish(Context& ctx);

 private:
  void reduce(Context& ctx, const FlatRange& range);

  Communicator& communicator_;
  Tensor gradients_;
  Options options_;
  FlatRange pending_;              // final, not queued yet
  std::vector<FlatRange> queued_;  // of this step
};

}  // namespace sfa
