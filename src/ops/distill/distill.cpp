#include "ops/distill/distill.h"

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/distill/distill_cuda.h"

namespace sfa {

namespace {

void distill_backward_cpu(Context& ctx, const DistillBackward& a) {
  const std::int64_t N = a.out.dim(0), W = a.out.dim(1);
  const float *out = a.out.as<float>(), *teacher = a.teacher.as<float>();
  float *d_out = a.d_out.as<float>(), *rows = a.rows.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t n = 0; n < N; ++n) {
    double sum = 0;
    for (std::int64_t i = n * W; i < (n + 1) * W; ++i) {
      const float difference = out[i] - teacher[i];
      sum += static_cast<double>(difference) * static_cast<double>(difference);
      d_out[i] += a.scale * difference;
    }
    rows[n] = static_cast<float>(sum);
  }
  round_output(ctx, a.d_out);
}

}  // namespace

void distill_backward(Context& ctx, const DistillBackward& args) {
  for (const Tensor* t : {&args.out, &args.teacher, &args.d_out})
    require(t->rank == 2 && t->contiguous() && t->dim(0) == args.out.dim(0) && t->dim(1) == args.out.dim(1) &&
                t->dtype == args.out.dtype,
            "internal error: distill_backward: out {}, teacher {}, d_out {}", args.out, args.teacher, args.d_out);
  require(args.rows.numel() == args.out.dim(0), "internal error: distill_backward: rows {}", args.rows);
  if (ctx.planning) return;
  const OpScope scope(ctx, [&] {
    return OpWork{.kind = "distillation",
                  .shape = fmt::format("{} x {}", args.out.dim(0), args.out.dim(1)),
                  .bytes = bytes_of({args.out, args.teacher, args.d_out, args.d_out, args.rows})};
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::distill_backward(ctx, args);
  }
  distill_backward_cpu(ctx, args);
}

}  // namespace sfa
