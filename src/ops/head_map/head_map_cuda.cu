// One batch of products by cuBLASLt for all heads: matrices of a batch lie D columns apart. The gradient of a shared
// map is a batch of one a head in scratch, folded in the order of heads.
#include "cuda/columns.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "ops/head_map/head_map_cuda.h"

namespace sfa::cuda_ops {
namespace {

Matrix heads_of(const Tensor& rows, std::int64_t D) {
  return {rows.data, rows.dtype, rows.stride[0], D};
}

bool shared(const Tensor& weight) {
  return weight.dim(0) == weight.dim(1);
}

Matrix maps_of(const Tensor& weight) {
  const std::int64_t D = weight.dim(1);
  return {weight.data, weight.dtype, D, shared(weight) ? 0 : D * D};
}

}  // namespace

void head_map_forward(Context& ctx, const HeadMap& args) {
  const std::int64_t D = args.weight.dim(1);
  gemm(ctx.cuda(), {.transpose_b = true,
                    .M = args.x.dim(0),
                    .N = D,
                    .K = D,
                    .a = heads_of(args.x, D),
                    .b = maps_of(args.weight),
                    .d = heads_of(args.y, D),
                    .batch = args.x.dim(1) / D});
}

void head_map_backward(Context& ctx, const HeadMapBackward& args) {
  const std::int64_t N = args.x.dim(0), D = args.weight.dim(1), heads = args.x.dim(1) / D;
  ArenaScope scope(args.scratch);
  const bool apart = shared(args.weight) && heads > 1;
  const Tensor partials = apart ? args.scratch.take(DType::f32, {heads * D, D}) : Tensor{};
  if (ctx.planning || N == 0) return;
  CudaState& state = ctx.cuda();
  gemm(state, {.M = N,
               .N = D,
               .K = D,
               .a = heads_of(args.d_y, D),
               .b = maps_of(args.weight),
               .d = heads_of(args.d_x, D),
               .batch = heads});
  gemm(state, {.transpose_a = true,
               .accumulate = !apart,
               .M = D,
               .N = D,
               .K = N,
               .a = heads_of(args.d_y, D),
               .b = heads_of(args.x, D),
               .d = maps_of(apart ? partials : args.d_weight),
               .batch = heads});
  if (apart) fold_partials(state, partials.as<float>(), static_cast<int>(heads), D * D, args.d_weight, D * D);
}

}  // namespace sfa::cuda_ops
