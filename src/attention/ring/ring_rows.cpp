#include "attention/ring/ring_rows.h"

#include <algorithm>

#include "attention/ring/ring_rows_cuda.h"
#include "core/build_config.h"

namespace sfa {
namespace {

bool rows_match(const Tensor& wide, const Tensor& f32, const Tensor& indices) {
  if (wide.rank != 4 || f32.rank != 4 || f32.dtype != DType::f32 || !f32.contiguous()) return false;
  for (int i = 0; i < 3; ++i)
    if (wide.dim(i) != f32.dim(i)) return false;
  if (indices.empty()) return wide.dim(3) == f32.dim(3);
  return indices.shape == f32.shape && indices.dtype == DType::u8 && indices.contiguous();
}

}  // namespace

void ring_collect(Context& ctx, const RingCollect& a) {
  require(rows_match(a.from, a.to, a.indices) && a.from.contiguous(), "internal error: ring_collect: {} at {} to {}",
          a.from, a.indices, a.to);
  if (ctx.planning || a.to.numel() == 0) return;
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::ring_collect(ctx, a);
  }
  const std::int64_t D = a.from.dim(3), n = a.to.dim(3), rows = a.to.numel() / n;
  const float* from = a.from.as<float>();
  const std::uint8_t* indices = a.indices.empty() ? nullptr : a.indices.as<std::uint8_t>();
  float* to = a.to.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = 0; j < n; ++j) {
      const float value = from[r * D + (indices != nullptr ? indices[r * n + j] : j)];
      to[r * n + j] = a.add ? to[r * n + j] + value : value;
    }
}

void ring_store(Context& ctx, const RingStore& a) {
  require(rows_match(a.to, a.from, a.indices), "internal error: ring_store: {} at {} to {}", a.from, a.indices, a.to);
  if (ctx.planning || a.to.numel() == 0) return;
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::ring_store(ctx, a);
  }
  const std::int64_t T = a.to.dim(1), heads = a.to.dim(2), D = a.to.dim(3), n = a.from.dim(3);
  const float* from = a.from.as<float>();
  const std::uint8_t* indices = a.indices.empty() ? nullptr : a.indices.as<std::uint8_t>();
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < a.to.dim(0) * T * heads; ++r) {
    float* to =
        a.to.as<float>() + r / heads / T * a.to.stride[0] + r / heads % T * a.to.stride[1] + r % heads * a.to.stride[2];
    if (indices != nullptr) std::fill_n(to, D, 0.0f);
    for (std::int64_t j = 0; j < n; ++j) {
      const float value = from[r * n + j];
      to[indices != nullptr ? indices[r * n + j] : j] = ctx.round_bf16 ? round_to_bf16(value) : value;
    }
  }
}

}  // namespace sfa
