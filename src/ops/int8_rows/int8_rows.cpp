#include "ops/int8_rows/int8_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/int8_rows/int8_rows_cuda.h"

namespace sfa {
namespace {

void check(const Tensor& x, const char* what) {
  require(x.rank == 4 && x.dim(3) <= 256 && x.stride[3] == 1, "internal error: {}: x {}", what, x);
}

void check(const Tensor& x, const Int8Rows& rows, std::int64_t at, const char* what) {
  check(x, what);
  require(x.dtype == DType::bf16 && rows.values.rank == 4 && rows.scales.rank == 3 && rows.values.dtype == DType::u8 &&
              rows.scales.dtype == DType::bf16 && rows.values.dim(0) == x.dim(0) && rows.values.dim(2) == x.dim(2) &&
              rows.values.dim(3) == x.dim(3) && rows.scales.dim(0) == x.dim(0) && rows.scales.dim(2) == x.dim(2) &&
              at >= 0 && at + x.dim(1) <= rows.values.dim(1) && at + x.dim(1) <= rows.scales.dim(1),
          "internal error: {}: x {}, values {}, scales {}, at {}", what, x, rows.values, rows.scales, at);
}

OpWork work(const char* kind, const Tensor& x, double bytes) {
  return {.kind = kind, .shape = fmt::format("{} x {} x {}", x.dim(0) * x.dim(1), x.dim(2), x.dim(3)), .bytes = bytes};
}

float rounded_up_to_bf16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x), low = bits & 0xffffu;
  return std::bit_cast<float>(low == 0 ? bits : bits - low + 0x10000u);
}

void round_row(float* x, std::int64_t D, bool bf16) {
  float most = 0;
  for (std::int64_t c = 0; c < D; ++c) most = std::max(most, std::fabs(x[c]));
  const bool zero = most < kInt8Smallest;
  const float scale = zero ? 0.0f : rounded_up_to_bf16(most / 127.0f), inverse = zero ? 0.0f : 1.0f / scale;
  for (std::int64_t c = 0; c < D; ++c) {
    const float stored = std::clamp(std::nearbyint(x[c] * inverse), -127.0f, 127.0f), value = scale * stored;
    x[c] = bf16 ? round_to_bf16(value) : value;
  }
}

}  // namespace

void int8_round(Context& ctx, const Tensor& x) {
  check(x, "int8_round");
  if (ctx.planning || x.numel() == 0) return;
  const OpScope scope(ctx, [&] { return work("int8 round", x, bytes_of({x, x})); });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::int8_round(ctx, x);
  }
  float* data = x.as<float>();
  const std::int64_t T = x.dim(1), heads = x.dim(2);
#pragma omp parallel for collapse(2) schedule(static)
  for (std::int64_t n = 0; n < x.dim(0) * T; ++n)
    for (std::int64_t h = 0; h < heads; ++h)
      round_row(data + n / T * x.stride[0] + n % T * x.stride[1] + h * x.stride[2], x.dim(3), ctx.round_bf16);
}

void int8_append(Context& ctx, const Tensor& x, const Int8Rows& to, std::int64_t at) {
  check(x, to, at, "int8_append");
  if (ctx.planning || x.numel() == 0) return;
  const OpScope scope(ctx, [&] { return work("int8 append", x, 1.5 * bytes_of({x})); });
  if constexpr (kHasCuda) cuda_ops::int8_append(ctx, x, to, at);
}

void int8_expand(Context& ctx, const Int8Rows& from, const Tensor& x) {
  check(x, from, 0, "int8_expand");
  if (ctx.planning || x.numel() == 0) return;
  const OpScope scope(ctx, [&] { return work("int8 expand", x, 1.5 * bytes_of({x})); });
  if constexpr (kHasCuda) cuda_ops::int8_expand(ctx, from, x);
}

}  // namespace sfa
