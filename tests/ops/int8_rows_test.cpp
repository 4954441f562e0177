// Rows in 8 bits against the definition in double.
#include "ops/int8_rows/int8_rows.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/compare.h"
#include "support/tensors.h"

namespace sfa::test {
namespace {

TEST(Int8Rows, StayWithinHalfAScaleOnAtMost255Values) {
  Context ctx(Device::cpu);
  Pool pool(ctx);
  for (const std::int64_t D : {1, 7, 16, 64, 80, 256}) {
    constexpr std::int64_t B = 2, T = 5, H = 3;
    std::vector<float> x = normal(B * T * (H * D + 3), 1);
    for (std::int64_t c = 0; c < D; ++c) {
      x[c] = 0.0f;                                        // a row of zeroes
      x[D + c] *= 1e-36f;                                 // one that counts as such
      x[2 * D + c] = c == D - 1 ? -1e30f : x[2 * D + c];  // one that has a single large element
    }
    // Columns of wider rows, as keys and values lie beside queries.
    const Tensor wide = pool.floats(x, {B, T, H * D + 3}), rows = wide.slice(2, 0, H * D).split_last(H);
    int8_round(ctx, rows);
    const float* got = wide.as<float>();
    for (std::int64_t n = 0; n < B * T; ++n)
      for (std::int64_t h = 0; h < H; ++h) {
        const std::int64_t at = n * (H * D + 3) + h * D;
        double most = 0;
        for (std::int64_t c = 0; c < D; ++c) most = std::max(most, std::fabs(static_cast<double>(x[at + c])));
        // The scale is most / 127 and up to one part in 2^7 more; the quotient is rounded in f32.
        const double scale = most / 127 * (1 + 0x1p-7), bound = scale / 2 + 130 * scale * 0x1p-23;
        for (std::int64_t c = 0; c < D; ++c) {
          if (most < kInt8Smallest)
            EXPECT_EQ(got[at + c], 0.0f);
          else
            EXPECT_LE(std::fabs(static_cast<double>(got[at + c]) - x[at + c]), bound) << D << " " << n << " " << h;
        }
      }
    for (std::int64_t n = 0; n < B * T; ++n)
      for (std::int64_t i = H * D; i < H * D + 3; ++i) EXPECT_EQ(got[n * (H * D + 3) + i], x[n * (H * D + 3) + i]);
  }
}

}  // namespace
}  // namespace sfa::test
