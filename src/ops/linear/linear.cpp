#include "ops/linear/linear.h"

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/linear/linear_cpu.h"
#include "ops/linear/linear_cuda.h"

namespace sfa {
namespace {
void check(const Tensor& x, const Tensor& weight, const Tensor& y, const char* what) {
  require(x.rank == 2 && weight.rank == 2 && y.rank == 2 && x.dim(0) == y.dim(0) && x.dim(1) == weight.dim(1) &&
              y.dim(1) == weight.dim(0) && x.contiguous() && weight.contiguous() && y.contiguous(),
          "internal error: {}: x {}, weight {}, y {}", what, x, weight, y);
}
}  // namespace

OpWork d_weight_work(const LinearBackward& args) {
  return product_work("linear d_weight", args.weight.dim(0), args.x.dim(1), args.x.dim(0),
                      bytes_of({args.d_y, args.x, args.d_weight, args.d_weight}));
}

OpWork d_x_work(const LinearBackward& args) {
  return product_work(args.pre_of_x.empty() ? "linear d_x" : "linear gelu d_x", args.x.dim(0), args.x.dim(1),
                      args.weight.dim(0), bytes_of({args.d_y, args.weight, args.d_x, args.pre_of_x}));
}

OpWork d_bias_work(const LinearBackward& args) {
  return {.kind = "linear d_bias",
          .shape = fmt::format("{} x {}", args.d_y.dim(0), args.d_y.dim(1)),
          .bytes = bytes_of({args.d_y, args.d_bias, args.d_bias})};
}

void linear_forward(Context& ctx, const LinearForward& args) {
  check(args.x, args.weight, args.y, "linear_forward");
  if (ctx.planning) return;
  const OpScope scope(ctx, [&] {
    return product_work(args.pre.empty() ? "linear forward" : "linear gelu forward", args.x.dim(0), args.weight.dim(0),
                        args.x.dim(1), bytes_of({args.x, args.weight, args.bias, args.y, args.pre}));
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::linear_forward(ctx, args);
  }
  cpu_ops::linear_forward(ctx, args);
}

void gelu_forward(Context& ctx, const Tensor& pre, const Tensor& y) {
  require(pre.numel() == y.numel() && pre.dtype == y.dtype && pre.contiguous() && y.contiguous(),
          "internal error: gelu_forward: pre {}, y {}", pre, y);
  if (ctx.planning) return;
  const OpScope scope(ctx, [&] {
    return OpWork{
        .kind = "gelu forward", .shape = fmt::format("{} x {}", y.dim(0), y.dim(1)), .bytes = bytes_of({pre, y})};
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::gelu_forward(ctx, pre, y);
  }
  cpu_ops::gelu_forward(ctx, pre, y);
}

void linear_backward(Context& ctx, const LinearBackward& args) {
  check(args.x, args.weight, args.d_y, "linear_backward");
  require(args.d_pre_bias.empty() || (!args.pre_of_x.empty() && !args.d_x.empty()),
          "internal error: linear_backward: d_pre_bias without pre_of_x or d_x");
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::linear_backward(ctx, args);
  }
  cpu_ops::linear_backward(ctx, args);
}

}  // namespace sfa
