#include "ops/classifier/classifier.h"

#include "core/build_config.h"
#include "ops/classifier/classifier_cpu.h"
#include "ops/classifier/classifier_cuda.h"

namespace sfa {

// About 64 MiB of f32 logits a chunk: large enough for full-speed products, small beside the activations of a step.
std::int64_t classifier_chunk_rows(std::int64_t N, std::int64_t Vp) {
  constexpr std::int64_t kLogits = std::int64_t{16} << 20;
  const std::int64_t rows = kLogits / Vp / 128 * 128;
  return rows < 128 ? (N < 128 ? N : 128) : (rows < N ? rows : N);
}

void classifier_loss(Context& ctx, const Classifier& args) {
  require(args.x.rank == 2 && args.x.dim(1) == args.weight.dim(1) && args.targets.numel() == args.x.dim(0) &&
              args.losses.numel() == args.x.dim(0) && args.V >= 1 && args.V <= args.weight.dim(0) &&
              args.d_x.empty() == args.d_weight.empty(),
          "internal error: classifier_loss: x {}, weight {}, V {}", args.x, args.weight, args.V);
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::classifier_loss(ctx, args);
  }
  cpu_ops::classifier_loss(ctx, args);
}

}  // namespace sfa
