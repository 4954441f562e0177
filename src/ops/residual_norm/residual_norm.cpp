#include "ops/residual_norm/residual_norm.h"

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/residual_norm/residual_norm_cpu.h"
#include "ops/residual_norm/residual_norm_cuda.h"

namespace sfa {

void residual_norm_forward(Context& ctx, const ResidualNormForward& args) {
  require(args.residual.rank == 2 && args.residual.contiguous() && args.y.contiguous() &&
              args.y.numel() == args.residual.numel() && args.weight.numel() == args.residual.dim(1) &&
              args.x.empty() == args.residual_out.empty() && args.bias.empty() == args.mean.empty(),
          "internal error: residual_norm_forward: residual {}, y {}, weight {}", args.residual, args.y, args.weight);
  if (ctx.planning) return;
  const OpScope scope(ctx, [&] {
    return OpWork{.kind = "norm forward",
                  .shape = fmt::format("{} x {}", args.y.dim(0), args.y.dim(1)),
                  .bytes = bytes_of({args.residual, args.x, args.residual_out, args.y, args.mean, args.rstd})};
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::residual_norm_forward(ctx, args);
  }
  cpu_ops::residual_norm_forward(ctx, args);
}

void residual_norm_backward(Context& ctx, const ResidualNormBackward& args) {
  require(args.d_y.rank == 2 && args.d_y.contiguous() && args.d_residual.numel() == args.d_y.numel() &&
              args.residual_out.numel() == args.d_y.numel() && args.d_bias.empty() == args.mean.empty(),
          "internal error: residual_norm_backward: d_y {}, residual_out {}", args.d_y, args.residual_out);
  const OpScope scope(ctx, [&] {
    return OpWork{
        .kind = "norm backward",
        .shape = fmt::format("{} x {}", args.d_y.dim(0), args.d_y.dim(1)),
        .bytes = bytes_of({args.d_y, args.d_residual_out, args.residual_out, args.d_residual, args.mean, args.rstd})};
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::residual_norm_backward(ctx, args);
  }
  cpu_ops::residual_norm_backward(ctx, args);
}

}  // namespace sfa
