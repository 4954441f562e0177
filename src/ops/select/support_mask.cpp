#include "ops/select/support_mask.h"

#include <algorithm>

#include "core/build_config.h"
#include "core/observer.h"
#include "ops/select/support_mask_cuda.h"

namespace sfa {
namespace {

void check(const Tensor& numbers, const Tensor& mask, const char* what) {
  bool same = numbers.rank == 4 && mask.rank == 4 && numbers.dtype == DType::u8 && mask.dtype == DType::u8;
  for (int i = 0; i < 3; ++i) same = same && numbers.dim(i) == mask.dim(i);
  const auto step = static_cast<std::uintptr_t>(mask.stride[0] | mask.stride[1] | mask.stride[2] | mask.dim(3));
  require(same && mask.dim(3) <= 32 && (reinterpret_cast<std::uintptr_t>(mask.data) | step) % 4 == 0,
          "internal error: {}: numbers {}, mask {}", what, numbers, mask);
}

OpWork work(const char* kind, const Tensor& numbers, const Tensor& mask) {
  return {.kind = kind,
          .shape = fmt::format("{} x {} x {}", numbers.dim(0) * numbers.dim(1), numbers.dim(2), numbers.dim(3)),
          .bytes = bytes_of({numbers, mask})};
}

std::uint8_t* row_of(const Tensor& t, std::int64_t b, std::int64_t i, std::int64_t h) {
  return t.as<std::uint8_t>() + b * t.stride[0] + i * t.stride[1] + h * t.stride[2];
}

void pack_row(const std::uint8_t* numbers, std::int64_t k, std::uint8_t* mask, std::int64_t bytes) {
  std::fill_n(mask, bytes, std::uint8_t{0});
  for (std::int64_t n = 0; n < k; ++n)
    if (numbers[n] < 8 * bytes) mask[numbers[n] / 8] |= static_cast<std::uint8_t>(1u << (numbers[n] % 8));
}

// row(numbers, mask) for every row.
template <class Row>
void for_rows(const Tensor& numbers, const Tensor& mask, Row row) {
#pragma omp parallel for collapse(2) schedule(static)
  for (std::int64_t b = 0; b < mask.dim(0); ++b)
    for (std::int64_t t = 0; t < mask.dim(1); ++t)
      for (std::int64_t h = 0; h < mask.dim(2); ++h) row(row_of(numbers, b, t, h), row_of(mask, b, t, h));
}

}  // namespace

void mask_pack(Context& ctx, const Tensor& numbers, const Tensor& mask) {
  check(numbers, mask, "mask_pack");
  if (ctx.planning || mask.numel() == 0) return;
  const OpScope scope(ctx, [&] { return work("mask pack", numbers, mask); });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::mask_pack(ctx, numbers, mask);
  }
  for_rows(numbers, mask,
           [&](const std::uint8_t* from, std::uint8_t* to) { pack_row(from, numbers.dim(3), to, mask.dim(3)); });
}

void mask_unpack(Context& ctx, const Tensor& mask, const Tensor& numbers) {
  check(numbers, mask, "mask_unpack");
  if (ctx.planning || mask.numel() == 0) return;
  const OpScope scope(ctx, [&] { return work("mask unpack", numbers, mask); });
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) return cuda_ops::mask_unpack(ctx, mask, numbers);
  }
  for_rows(numbers, mask,
           [&](std::uint8_t* to, const std::uint8_t* from) { unpack_mask(from, mask.dim(3), numbers.dim(3), to); });
}

}  // namespace sfa
