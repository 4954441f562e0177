#include "ops/head_map/head_map.h"

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/head_map/head_map_cpu.h"
#include "ops/head_map/head_map_cuda.h"

namespace sfa {
namespace {

void check(const Tensor& x, const Tensor& weight, const Tensor& y, const char* what) {
  require(x.rank == 2 && y.rank == 2 && weight.rank == 2 && x.shape == y.shape && x.stride[1] == 1 &&
              y.stride[1] == 1 && weight.contiguous() && x.dim(1) % weight.dim(1) == 0 &&
              (weight.dim(0) == weight.dim(1) || weight.dim(0) == x.dim(1)),
          "internal error: {}: x {}, weight {}, y {}", what, x, weight, y);
}

OpWork work(const char* kind, const Tensor& x, const Tensor& weight, double products, double bytes) {
  return {.kind = kind,
          .shape = fmt::format("{} x {} heads of {}", x.dim(0), x.dim(1) / weight.dim(1), weight.dim(1)),
          .flops = products * 2.0 * static_cast<double>(x.numel() * weight.dim(1)),
          .bytes = bytes};
}

}  // namespace

void head_map_forward(Context& ctx, const HeadMap& args) {
  check(args.x, args.weight, args.y, "head_map_forward");
  if (ctx.planning || args.x.numel() == 0) return;
  const OpScope scope(ctx, [&] {
    return work("head map forward", args.x, args.weight, 1, bytes_of({args.x, args.weight, args.y}));
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::head_map_forward(ctx, args);
  }
  cpu_ops::head_map_forward(ctx, args);
}

void head_map_backward(Context& ctx, const HeadMapBackward& args) {
  check(args.x, args.weight, args.d_y, "head_map_backward");
  require(args.d_x.shape == args.x.shape && args.d_x.stride[1] == 1 && args.d_weight.shape == args.weight.shape &&
              args.d_weight.contiguous(),
          "internal error: head_map_backward: d_x {}, d_weight {}", args.d_x, args.d_weight);
  const OpScope scope(ctx, [&] {
    return work("head map backward", args.x, args.weight, 2,
                bytes_of({args.d_y, args.d_y, args.x, args.weight, args.d_x, args.d_weight, args.d_weight}));
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::head_map_backward(ctx, args);
  }
  if (!ctx.planning) cpu_ops::head_map_backward(ctx, args);
}

}  // namespace sfa
