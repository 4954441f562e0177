#include "ops/qk_norm_rope/qk_norm_rope.h"

#include <cmath>

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/qk_norm_rope/qk_norm_rope_cpu.h"
#include "ops/qk_norm_rope/qk_norm_rope_cuda.h"

namespace sfa {
namespace {

bool rows_match(const Tensor& x, std::int64_t H, std::int64_t G, std::int64_t D) {
  if (x.rank != 3 || !x.contiguous() || H < 1 || G < 1 || D < 2 || D % 2 != 0) return false;
  const std::int64_t v = x.dim(2) - (H + G) * D;
  return v >= 0 && v % G == 0;
}

bool same_shape(const Tensor& a, const Tensor& b) {
  return a.rank == b.rank && a.shape == b.shape && a.dtype == b.dtype && a.contiguous() && b.contiguous();
}

std::string describe(const Tensor& x, std::int64_t H, std::int64_t G, std::int64_t D) {
  return fmt::format("{} x ({} + {}) heads of {}", x.dim(0) * x.dim(1), H, G, D);
}

}  // namespace

std::vector<double> rope_frequencies(std::int64_t D, double theta) {
  std::vector<double> f(static_cast<std::size_t>(D / 2));
  for (std::size_t i = 0; i < f.size(); ++i)
    f[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(D));
  return f;
}

void qk_norm_rope_forward(Context& ctx, const QkNormRope& args) {
  const std::int64_t heads = args.H + args.G;
  require(rows_match(args.x, args.H, args.G, args.D) && args.q_weight.numel() == args.D &&
              args.k_weight.numel() == args.D && args.y.rank == 3 && args.y.dim(0) == args.x.dim(0) &&
              args.y.dim(1) == args.x.dim(1) && args.y.dtype == args.x.dtype && args.y.contiguous() &&
              (args.y.dim(2) == args.x.dim(2) || args.y.dim(2) == heads * args.D) &&
              (args.rstd.empty() || args.rstd.numel() == args.x.dim(0) * args.x.dim(1) * heads),
          "internal error: qk_norm_rope_forward: x {}, {} + {} heads of {}, y {}, rstd {}", args.x, args.H, args.G,
          args.D, args.y, args.rstd);
  if (ctx.planning || args.x.numel() == 0) return;
  const OpScope scope(ctx, [&] {
    const bool in_place = args.y.data == args.x.data;  // then nothing is done to the v heads
    const double width = static_cast<double>(in_place ? heads * args.D : args.y.dim(2)),
                 rows = static_cast<double>(args.x.dim(0) * args.x.dim(1));
    return OpWork{.kind = "qk norm rope forward",
                  .shape = describe(args.x, args.H, args.G, args.D),
                  .bytes = 2 * rows * width * static_cast<double>(size_of(args.x.dtype)) + bytes_of({args.rstd})};
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::qk_norm_rope_forward(ctx, args);
  }
  cpu_ops::qk_norm_rope_forward(ctx, args);
}

void qk_norm_rope_backward(Context& ctx, const QkNormRopeBackward& args) {
  const std::int64_t heads = args.H + args.G;
  require(rows_match(args.x, args.H, args.G, args.D) && same_shape(args.d_y, args.x) && same_shape(args.d_x, args.x) &&
              args.q_weight.numel() == args.D && args.k_weight.numel() == args.D && args.d_q_weight.numel() == args.D &&
              args.d_k_weight.numel() == args.D && args.d_q_weight.dtype == args.d_k_weight.dtype &&
              args.rstd.numel() == args.x.dim(0) * args.x.dim(1) * heads,
          "internal error: qk_norm_rope_backward: x {}, {} + {} heads of {}, d_y {}, d_x {}, rstd {}", args.x, args.H,
          args.G, args.D, args.d_y, args.d_x, args.rstd);
  if (args.x.numel() == 0) return;
  const OpScope scope(ctx, [&] {
    const double qk = static_cast<double>(args.x.dim(0) * args.x.dim(1) * heads * args.D),
                 v = args.d_x.data == args.d_y.data ? 0 : static_cast<double>(args.x.numel()) - qk;
    return OpWork{.kind = "qk norm rope backward",
                  .shape = describe(args.x, args.H, args.G, args.D),
                  .bytes = (3 * qk + 2 * v) * static_cast<double>(size_of(args.x.dtype)) + bytes_of({args.rstd})};
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::qk_norm_rope_backward(ctx, args);
  }
  cpu_ops::qk_norm_rope_backward(ctx, args);
}

}  // namespace sfa
