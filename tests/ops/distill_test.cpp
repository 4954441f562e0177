// The squared distance's step back against the formula in double, on vectors and on odd widths.
#include "ops/distill/distill.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

class DistillBackwardOp : public DeviceTest {};

TEST_P(DistillBackwardOp, AddsTheDifferenceAndSumsItsSquares) {
  for (const auto& [N, W] : std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1}, {5, 24}, {33, 130}, {7, 2056}})
    for (const DType type : {DType::f32, DType::bf16}) {
      if (type == DType::bf16 && !ctx.on_cuda()) continue;
      SCOPED_TRACE(::testing::Message() << N << " x " << W << " " << name_of(type));
      const auto stored = [&](std::vector<float> x) {
        for (float& v : x) v = type == DType::bf16 ? round_to_bf16(v) : v;
        return x;
      };
      const auto out = stored(normal(N * W, 1)), teacher = stored(normal(N * W, 2)), before = stored(normal(N * W, 3));
      const float scale = 0.25f;
      std::vector<double> want_d, want_rows(static_cast<std::size_t>(N));
      for (std::int64_t i = 0; i < N * W; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const double difference = static_cast<double>(out[at]) - static_cast<double>(teacher[at]);
        want_d.push_back(static_cast<double>(before[at]) + static_cast<double>(scale) * difference);
        want_rows[static_cast<std::size_t>(i / W)] += difference * difference;
      }
      const Tensor d_out = pool.floats(before, {N, W}, type), rows = pool.poisoned(DType::f32, {N});
      distill_backward(ctx, {.out = pool.floats(out, {N, W}, type),
                             .teacher = pool.floats(teacher, {N, W}, type),
                             .scale = scale,
                             .d_out = d_out,
                             .rows = rows});
      // One rounding of the result: half a unit in the last place, 2^-9 in bf16, 2^-24 in f32, and one of the product.
      EXPECT_TRUE(near_in_norm(values_of(ctx, d_out), want_d, type == DType::bf16 ? 0x1p-9 : 0x1p-23));
      // Sums of W squares in f32.
      EXPECT_TRUE(near_in_norm(values_of(ctx, rows), want_rows, 1e-7 * std::sqrt(static_cast<double>(W)) + 1e-7));
    }
}

SFA_ON_EVERY_DEVICE(DistillBackwardOp);

}  // namespace
}  // namespace sfa::test
