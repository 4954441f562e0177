#include "ops/balance/balance.h"

#include <cmath>
#include <vector>

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/balance/balance_cuda.h"
#include "ops/reduce/reduce.h"

namespace sfa {
namespace {

// Row n of a strided [B,T,heads,D] tensor.
template <class T>
T* row_of(const Tensor& t, std::int64_t n) {
  const std::int64_t steps = t.dim(1), heads = t.dim(2), token = n / heads;
  return t.as<T>() + token / steps * t.stride[0] + token % steps * t.stride[1] + n % heads * t.stride[2];
}

// f of every head: [heads * D].
std::vector<float> kept_shares(const BalanceBackward& a) {
  const std::int64_t heads = a.x.dim(2), D = a.x.dim(3), k = a.indices.dim(3), rows = a.x.dim(0) * a.x.dim(1);
  std::vector<float> shares(static_cast<std::size_t>(heads * D));
#pragma omp parallel for schedule(static)
  for (std::int64_t h = 0; h < heads; ++h) {
    std::vector<std::int64_t> count(static_cast<std::size_t>(D));
    for (std::int64_t n = 0; n < rows; ++n) {
      const auto* kept = row_of<std::uint8_t>(a.indices, n * heads + h);
      for (std::int64_t i = 0; i < k; ++i) ++count[kept[i]];
    }
    for (std::int64_t j = 0; j < D; ++j)
      shares[static_cast<std::size_t>(h * D + j)] =
          static_cast<float>(count[static_cast<std::size_t>(j)]) / static_cast<float>(rows * k);
  }
  return shares;
}

// Returns the row's D m.
float balance_row(const float* x, const float* shares, std::int64_t D, float scale, float* d_x) {
  float sum = 0, kept = 0;
#pragma omp simd reduction(+ : sum, kept)
  for (std::int64_t j = 0; j < D; ++j) {
    sum += std::fabs(x[j]);
    kept += shares[j] * std::fabs(x[j]);
  }
  if (sum == 0) return 0;
  const float weight = static_cast<float>(D) / sum, mean = kept / sum;
#pragma omp simd
  for (std::int64_t j = 0; j < D; ++j) {
    const float sign = static_cast<float>((x[j] > 0) - (x[j] < 0));
    d_x[j] += scale * weight * sign * (shares[j] - mean);
  }
  return weight * kept;
}

void balance_backward_cpu(Context& ctx, const BalanceBackward& a, const Tensor& parts) {
  const std::int64_t heads = a.x.dim(2), D = a.x.dim(3), rows = parts.numel();
  const std::vector<float> shares = kept_shares(a);
  float* part = parts.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t n = 0; n < rows; ++n) {
    float* d_x = row_of<float>(a.d_x, n);
    part[n] = balance_row(row_of<float>(a.x, n), shares.data() + n % heads * D, D, a.scale, d_x);
    if (ctx.round_bf16)
      for (std::int64_t j = 0; j < D; ++j) d_x[j] = round_to_bf16(d_x[j]);
  }
  if (!a.total.empty()) sum_add(ctx, parts, a.total);
}

}  // namespace

void balance_backward(Context& ctx, const BalanceBackward& args) {
  require(args.x.rank == 4 && args.x.shape == args.d_x.shape && args.x.dtype == args.d_x.dtype &&
              args.indices.rank == 4 && args.indices.dim(2) == args.x.dim(2) && args.x.dim(3) <= 256,
          "internal error: balance_backward: x {}, indices {}, d_x {}", args.x, args.indices, args.d_x);
  const OpScope scope(ctx, [&] {
    return OpWork{.kind = "balance",
                  .shape = fmt::format("{} x {} x {}", args.x.dim(0) * args.x.dim(1), args.x.dim(2), args.x.dim(3)),
                  .bytes = bytes_of({args.x, args.indices, args.d_x, args.d_x})};
  });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::balance_backward(ctx, args);
  }
  ArenaScope memory(args.scratch);
  const Tensor parts = args.scratch.take(DType::f32, {args.x.dim(0) * args.x.dim(1) * args.x.dim(2)});
  if (!ctx.planning) balance_backward_cpu(ctx, args, parts);
}

}  // namespace sfa
