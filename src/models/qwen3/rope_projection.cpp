#include "models/qwen3/rope_projection.h"

#include "ops/linear/linear.h"

namespace sfa {
namespace {

// Calls fn(columns of head h, rows of the map that serves it) for the heads of one side.
template <class Fn>
void for_each_head(const Tensor& weight, std::int64_t heads, std::int64_t D, std::int64_t first_column, Fn fn) {
  const bool shared = weight.dim(0) == D;
  for (std::int64_t h = 0; h < heads; ++h) fn(first_column + h * D, shared ? 0 : h * D);
}

Tensor columns(const Tensor& rows, std::int64_t begin, std::int64_t D) {
  return rows.view({-1, rows.dim(2)}).slice(1, begin, D);
}

void copy_values(const Context& ctx, const AttentionDims& dims, const Tensor& to, const Tensor& from) {
  if (!ctx.planning) ctx.copy_rows(packed_views(to, dims).v, packed_views(from, dims).v);
}

}  // namespace

void rope_projection_forward(Context& ctx, const RopeProjection& args) {
  const AttentionDims& d = args.dims;
  const auto side = [&](const Tensor& weight, std::int64_t heads, std::int64_t first) {
    for_each_head(weight, heads, d.Dqk, first, [&](std::int64_t column, std::int64_t row) {
      linear_forward(ctx, {columns(args.x, column, d.Dqk), weight.slice(0, row, d.Dqk), Tensor{},
                           columns(args.y, column, d.Dqk), Tensor{}});
    });
  };
  side(args.weights.q, d.H, 0);
  side(args.weights.k, d.G, d.H * d.Dqk);
  copy_values(ctx, d, args.y, args.x);
}

void rope_projection_backward(Context& ctx, const RopeProjectionBackward& args) {
  const AttentionDims& d = args.dims;
  const auto side = [&](const Tensor& weight, const Tensor& gradient, std::int64_t heads, std::int64_t first) {
    for_each_head(weight, heads, d.Dqk, first, [&](std::int64_t column, std::int64_t row) {
      linear_backward(
          ctx, {columns(args.d_y, column, d.Dqk), columns(args.x, column, d.Dqk), weight.slice(0, row, d.Dqk), Tensor{},
                columns(args.d_x, column, d.Dqk), gradient.slice(0, row, d.Dqk), Tensor{}, args.scratch});
    });
  };
  side(args.weights.q, args.gradients.q, d.H, 0);
  side(args.weights.k, args.gradients.k, d.G, d.H * d.Dqk);
  copy_values(ctx, d, args.d_x, args.d_y);
}

}  // namespace sfa
