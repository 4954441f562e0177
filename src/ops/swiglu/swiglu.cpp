#include "ops/swiglu/swiglu.h"

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/swiglu/swiglu_cpu.h"
#include "ops/swiglu/swiglu_cuda.h"

namespace sfa {
namespace {

bool halves_match(const Tensor& gate_up, const Tensor& y) {
  return gate_up.rank == 2 && y.rank == 2 && gate_up.dim(0) == y.dim(0) && gate_up.dim(1) == 2 * y.dim(1) &&
         gate_up.dtype == y.dtype && gate_up.contiguous() && y.contiguous();
}

}  // namespace

void swiglu_forward(Context& ctx, const Tensor& gate_up, const Tensor& y) {
  require(halves_match(gate_up, y), "internal error: swiglu_forward: gate_up {}, y {}", gate_up, y);
  if (ctx.planning || y.numel() == 0) return;
  const OpScope scope(ctx, [&] {
    return OpWork{
        .kind = "swiglu forward", .shape = fmt::format("{} x {}", y.dim(0), y.dim(1)), .bytes = bytes_of({gate_up, y})};
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::swiglu_forward(ctx, gate_up, y);
  }
  cpu_ops::swiglu_forward(ctx, gate_up, y);
}

void swiglu_backward(Context& ctx, const SwigluBackward& args) {
  require(halves_match(args.gate_up, args.d_y) && halves_match(args.d_gate_up, args.d_y) &&
              (args.y.empty() || halves_match(args.gate_up, args.y)),
          "internal error: swiglu_backward: gate_up {}, d_y {}, d_gate_up {}, y {}", args.gate_up, args.d_y,
          args.d_gate_up, args.y);
  if (ctx.planning || args.d_y.numel() == 0) return;
  const OpScope scope(ctx, [&] {
    return OpWork{.kind = "swiglu backward",
                  .shape = fmt::format("{} x {}", args.d_y.dim(0), args.d_y.dim(1)),
                  .bytes = bytes_of({args.gate_up, args.d_y, args.d_gate_up, args.y})};
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::swiglu_backward(ctx, args);
  }
  cpu_ops::swiglu_backward(ctx, args);
}

}  // namespace sfa
