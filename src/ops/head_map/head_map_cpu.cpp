#include "ops/head_map/head_map_cpu.h"

#include "ops/linear/linear_cpu.h"

namespace sfa::cpu_ops {
namespace {

// Calls fn(columns of head h, first element of its map).
template <class Fn>
void for_each_head(const Tensor& x, const Tensor& weight, Fn fn) {
  const std::int64_t D = weight.dim(1), heads = x.dim(1) / D, step = weight.dim(0) == x.dim(1) ? D * D : 0;
  for (std::int64_t h = 0; h < heads; ++h) fn(h * D, h * step);
}

}  // namespace

void head_map_forward(Context& ctx, const HeadMap& args) {
  const std::int64_t N = args.x.dim(0), D = args.weight.dim(1);
  for_each_head(args.x, args.weight, [&](std::int64_t column, std::int64_t map) {
    gemm({.transpose_b = true,
          .M = N,
          .N = D,
          .K = D,
          .a = args.x.as<float>() + column,
          .lda = args.x.stride[0],
          .b = args.weight.as<float>() + map,
          .ldb = D,
          .c = args.y.as<float>() + column,
          .ldc = args.y.stride[0]});
  });
  round_output(ctx, args.y);
}

void head_map_backward(Context& ctx, const HeadMapBackward& args) {
  const std::int64_t N = args.x.dim(0), D = args.weight.dim(1);
  if (args.x.numel() == 0) return;
  for_each_head(args.x, args.weight, [&](std::int64_t column, std::int64_t map) {
    const float* d_y = args.d_y.as<float>() + column;
    gemm({.M = N,
          .N = D,
          .K = D,
          .a = d_y,
          .lda = args.d_y.stride[0],
          .b = args.weight.as<float>() + map,
          .ldb = D,
          .c = args.d_x.as<float>() + column,
          .ldc = args.d_x.stride[0]});
    gemm({.transpose_a = true,
          .M = D,
          .N = D,
          .K = N,
          .a = d_y,
          .lda = args.d_y.stride[0],
          .b = args.x.as<float>() + column,
          .ldb = args.x.stride[0],
          .beta = 1.0f,
          .c = args.d_weight.as<float>() + map,
          .ldc = D});
  });
  round_output(ctx, args.d_x);
}

}  // namespace sfa::cpu_ops
