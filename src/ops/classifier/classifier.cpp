#include "ops/classifier/classifier.h"

#include <algorithm>

#include "core/build_config.h"
#include "ops/classifier/classifier_cpu.h"
#include "ops/classifier/classifier_cuda.h"

namespace sfa {

// CPU: about 64 MiB of f32 logits a chunk, large enough for full-speed products, small beside the activations of a
// step. GPU: at most 1 GiB of bf16 logits, in chunks of like size. Every chunk reads and writes the whole gradient of
// the head, so that few large ones are wanted.
std::int64_t classifier_chunk_rows(std::int64_t N, std::int64_t Vp, Device device) {
  const std::int64_t logits = std::int64_t{1} << (device == Device::cpu ? 24 : 29), granule = 128;
  const std::int64_t most = std::max(granule, logits / Vp / granule * granule);
  if (N <= most) return N;
  if (device == Device::cpu) return most;
  const std::int64_t chunks = (N + most - 1) / most, rows = (N + chunks - 1) / chunks;
  return (rows + granule - 1) / granule * granule;
}

ClassifierWork classifier_work(const Classifier& args, const Tensor& logits) {
  const std::int64_t rows = logits.dim(0), Vp = logits.dim(1), C = args.x.dim(1);
  const double x = static_cast<double>(rows * C) * static_cast<double>(size_of(args.x.dtype));
  const double table = bytes_of({args.weight}), values = bytes_of({logits});
  const bool backward = !args.d_x.empty();
  return {product_work("classifier logits", rows, Vp, C, x + table + values),
          {.kind = "classifier softmax",
           .shape = fmt::format("{} x {}", rows, Vp),
           .bytes = backward ? 2 * values : values},
          product_work("classifier d_x", rows, C, Vp, x + table + values),
          product_work("classifier d_weight", Vp, C, rows, x + values + 2 * bytes_of({args.d_weight}))};
}

void classifier_loss(Context& ctx, const Classifier& args) {
  require(args.x.rank == 2 && args.x.dim(1) == args.weight.dim(1) && args.targets.numel() == args.x.dim(0) &&
              args.losses.numel() == args.x.dim(0) && args.V >= 1 && args.V <= args.weight.dim(0) &&
              args.d_x.empty() == args.d_weight.empty() &&
              (args.greedy.empty() || (args.d_x.empty() && args.greedy.numel() == args.x.dim(0))),
          "internal error: classifier_loss: x {}, weight {}, V {}", args.x, args.weight, args.V);
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::classifier_loss(ctx, args);
  }
  cpu_ops::classifier_loss(ctx, args);
}

}  // namespace sfa
