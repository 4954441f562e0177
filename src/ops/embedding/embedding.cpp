#include "ops/embedding/embedding.h"

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/embedding/embedding_cpu.h"
#include "ops/embedding/embedding_cuda.h"

namespace sfa {

void embedding_forward(Context& ctx, const Tensor& tokens, const Tensor& wte, const Tensor& wpe,
                       std::int64_t first_position, const Tensor& out) {
  require(tokens.rank == 2 && out.rank == 3 && out.dim(0) == tokens.dim(0) && out.dim(1) == tokens.dim(1) &&
              wte.dim(1) == out.dim(2) && tokens.contiguous() && out.contiguous(),
          "internal error: embedding_forward: tokens {}, wte {}, out {}", tokens, wte, out);
  require(wpe.empty() || first_position + tokens.dim(1) <= wpe.dim(0),
          "positions {} to {} were asked for, but the model has {}", first_position, first_position + tokens.dim(1) - 1,
          wpe.empty() ? 0 : wpe.dim(0));
  if (ctx.planning) return;
  const OpScope scope(ctx, [&] {
    return OpWork{.kind = "embedding forward",
                  .shape = fmt::format("{} x {}", tokens.numel(), out.dim(2)),
                  .bytes = bytes_of({tokens, out, out})};  // a row of the table for every row of out
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::embedding_forward(ctx, tokens, wte, wpe, first_position, out);
  }
  cpu_ops::embedding_forward(ctx, tokens, wte, wpe, first_position, out);
}

void embedding_backward(Context& ctx, const EmbeddingBackward& args) {
  require(args.d_out.rank == 3 && args.d_wte.dim(1) == args.d_out.dim(2) && args.d_out.contiguous(),
          "internal error: embedding_backward: d_out {}, d_wte {}", args.d_out, args.d_wte);
  const OpScope scope(ctx, [&] {
    return OpWork{.kind = "embedding backward",
                  .shape = fmt::format("{} x {}", args.tokens.numel(), args.d_out.dim(2)),
                  .bytes = bytes_of({args.tokens, args.d_out})};
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::embedding_backward(ctx, args);
  }
  cpu_ops::embedding_backward(ctx, args);
}

}  // namespace sfa
