#include "ops/select/select.h"

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/select/select_cpu.h"
#include "ops/select/select_cuda.h"

namespace sfa {
namespace {

OpWork select_work(const char* kind, const Tensor& rows, double bytes) {
  return {.kind = kind,
          .shape = fmt::format("{} x {} x {}", rows.dim(0) * rows.dim(1), rows.dim(2), rows.dim(3)),
          .bytes = bytes};
}

}  // namespace

void select_topk(Context& ctx, const Select& args) {
  const std::int64_t D = args.x.dim(3);
  require(args.x.rank == 4 && args.k >= 1 && args.k <= D && D <= 256 && args.values.dim(3) == args.k &&
              args.indices.dim(3) == args.k && (!args.two_of_four || (D % 4 == 0 && args.k <= D / 2)) &&
              (!args.pairs || (!args.two_of_four && D % 2 == 0 && args.k % 2 == 0)),
          "internal error: select_topk: x {}, k {}{}{}", args.x, args.k, args.two_of_four ? ", two of four" : "",
          args.pairs ? ", pairs" : "");
  if (ctx.planning) return;
  const OpScope scope(ctx, [&] {
    return select_work("select", args.x, bytes_of({args.x, args.values, args.indices, args.dense}));
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::select_topk(ctx, args);
  }
  cpu_ops::select_topk(ctx, args);
}

void select_mask_gradient(Context& ctx, const Tensor& d_x, const Tensor& indices) {
  require(d_x.rank == 4 && indices.rank == 4, "internal error: select_mask_gradient: d_x {}, indices {}", d_x, indices);
  if (ctx.planning) return;
  const OpScope scope(ctx, [&] { return select_work("select mask gradient", d_x, bytes_of({d_x, d_x, indices})); });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::select_mask_gradient(ctx, d_x, indices);
  }
  cpu_ops::select_mask_gradient(ctx, d_x, indices);
}

void select_expand(Context& ctx, const Tensor& values, const Tensor& indices, const Tensor& dense) {
  require(values.rank == 4 && dense.rank == 4 && values.dim(3) == indices.dim(3) && values.dim(2) == dense.dim(2) &&
              values.dim(1) == dense.dim(1),
          "internal error: select_expand: values {}, dense {}", values, dense);
  if (ctx.planning) return;
  const OpScope scope(ctx, [&] { return select_work("select expand", dense, bytes_of({values, indices, dense})); });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::select_expand(ctx, values, indices, dense);
  }
  cpu_ops::select_expand(ctx, values, indices, dense);
}

}  // namespace sfa
