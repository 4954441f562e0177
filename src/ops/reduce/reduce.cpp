#include "ops/reduce/reduce.h"

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/reduce/reduce_cuda.h"

namespace sfa {

void sum_add(Context& ctx, const Tensor& x, const Tensor& total) {
  if (ctx.planning) return;
  const OpScope scope(ctx, [&] { return OpWork{.kind = "loss sum", .shape = "", .bytes = bytes_of({x})}; });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::sum_add(ctx, x, total);
  }
  const float* data = x.as<float>();
  double sum = 0;
  const std::int64_t n = x.numel();
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(data[i]);
  *static_cast<double*>(total.data) += sum;
}

void add_to(Context& ctx, const Tensor& from, const Tensor& to) {
  const std::int64_t n = to.numel();
  require(from.numel() == n && from.contiguous() && to.contiguous() && to.dtype == DType::f32,
          "internal error: add_to: {} to {}", from, to);
  if (ctx.planning || n == 0) return;
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::add_to(ctx, from, to);
  }
  const float* x = from.as<float>();
  float* y = to.as<float>();
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < n; ++i) y[i] += x[i];
}

}  // namespace sfa
