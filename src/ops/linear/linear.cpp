#include "ops/linear/linear.h"

#include "core/build_config.h"
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

void linear_forward(Context& ctx, const LinearForward& args) {
  check(args.x, args.weight, args.y, "linear_forward");
  if (ctx.planning) return;
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::linear_forward(ctx, args);
  }
  cpu_ops::linear_forward(ctx, args);
}

void linear_backward(Context& ctx, const LinearBackward& args) {
  check(args.x, args.weight, args.d_y, "linear_backward");
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::linear_backward(ctx, args);
  }
  cpu_ops::linear_backward(ctx, args);
}

}  // namespace sfa
