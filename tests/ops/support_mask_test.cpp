// Supports as a KV cache holds them: which of the two formats, and masks of one bit a feature against their definition.
#include "ops/select/support_mask.h"

#include <gtest/gtest.h>

#include "ops/select/select.h"
#include "support/compare.h"
#include "support/devices.h"
#include "support/selection.h"

namespace sfa::test {
namespace {

// Ordinary rows, rows of zeros, of one magnitude, of many ties, and with all that counts at one end.
std::vector<float> rows_of_every_kind(std::int64_t rows, std::int64_t D) {
  std::vector<float> x = normal(rows * D, 1);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t d = 0; d < D; ++d) {
      float& v = x[static_cast<std::size_t>(r * D + d)];
      if (r % 6 == 1) v = 0.0f;
      if (r % 6 == 2) v = d % 2 ? 1.0f : -1.0f;
      if (r % 6 == 3) v = std::round(2.0f * v) / 2.0f;
      if (r % 6 == 4) v = d < D / 2 ? 0.0f : v;
      if (r % 6 == 5) v *= d < 32 ? 100.0f : 1.0f;
    }
  return x;
}

class SupportMask : public DeviceTest {
 protected:
  // A cache [B, heads, capacity, width] seen as [B, capacity, heads, width], every byte `fill`.
  Tensor cache(std::int64_t B, std::int64_t heads, std::int64_t capacity, std::int64_t width, std::uint8_t fill) {
    const std::size_t bytes = static_cast<std::size_t>(B * heads * capacity * width);
    Tensor t = pool.integers(std::vector<std::uint8_t>(bytes, fill), {B, heads, capacity, width});
    std::swap(t.shape[1], t.shape[2]);
    std::swap(t.stride[1], t.stride[2]);
    return t;
  }

  // Selected features go into a cache's masks, and what is read out of them is what went in.
  void check(std::int64_t D, std::int64_t k) {
    SCOPED_TRACE(::testing::Message() << "D " << D << ", k " << k);
    const std::int64_t B = 2, T = 7, heads = 3, rows = B * T * heads, capacity = 11, at = 2, bytes = mask_bytes(D);
    const Tensor x = pool.floats(rows_of_every_kind(rows, D), {B, T, heads, D}),
                 values = pool.poisoned(DType::f32, {B, T, heads, k}),
                 numbers = pool.poisoned(DType::u8, {B, T, heads, k}),
                 back = pool.poisoned(DType::u8, {B, T, heads, k}), dense = pool.poisoned(DType::f32, {B, T, heads, D}),
                 wide = pool.poisoned(DType::f32, {B, T, heads, D});
    select_topk(ctx, {x, k, false, values, numbers, dense});
    const Tensor masks = cache(B, heads, capacity, bytes, 0xa5), written = masks.slice(1, at, T);
    mask_pack(ctx, numbers, written);
    mask_unpack(ctx, written, back);
    select_expand(ctx, values, back, wide);
    const auto features = elements<std::uint8_t>(ctx, numbers);
    std::vector<std::uint8_t> want(static_cast<std::size_t>(rows * bytes), 0);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t n = 0; n < k; ++n) {
        const std::uint8_t f = features[static_cast<std::size_t>(r * k + n)];
        want[static_cast<std::size_t>(r * bytes + f / 8)] |= static_cast<std::uint8_t>(1u << f % 8);
      }
    EXPECT_EQ(elements<std::uint8_t>(ctx, written), want);
    EXPECT_EQ(elements<std::uint8_t>(ctx, back), features);
    EXPECT_EQ(values_of(ctx, wide), values_of(ctx, dense));
    for (const auto& [first, count] : {std::pair{std::int64_t{0}, at}, {at + T, capacity - at - T}})
      for (const std::uint8_t byte : elements<std::uint8_t>(ctx, masks.slice(1, first, count))) ASSERT_EQ(byte, 0xa5);
  }
};

TEST(SupportFormat, TheSmallerOneIsTaken) {
  const auto expect = [](std::int64_t D, std::int64_t k, bool mask, std::int64_t bytes) {
    const SupportFormat f = support_format(D, k);
    EXPECT_EQ(f.mask, mask) << D << " " << k;
    EXPECT_EQ(f.bytes, bytes) << D << " " << k;
  };
  expect(64, 8, false, 8);
  expect(64, 9, true, 8);
  expect(64, 28, true, 8);
  expect(128, 16, false, 16);
  expect(128, 17, true, 16);
  expect(96, 12, false, 12);
  expect(96, 13, true, 12);
  expect(256, 128, true, 32);
  expect(8, 4, false, 4);
  expect(8, 5, true, 4);    // whole words
  expect(40, 8, false, 8);  // of 40 bits
  for (std::int64_t D = 1; D <= 256; ++D)
    for (std::int64_t k = 1; k <= D; ++k) {
      EXPECT_EQ(support_format(D, k).bytes, std::min(k, mask_bytes(D)));
      EXPECT_GE(8 * mask_bytes(D), D);
    }
}

TEST_P(SupportMask, HoldsWhatWasSelected) {
  for (const std::int64_t D : {32, 64, 96, 128, 256})
    for (std::int64_t k = 1; k <= std::min<std::int64_t>(D, 128); ++k) check(D, k);
  for (const auto& [D, k] : {std::pair{1, 1}, {7, 5}, {20, 20}, {33, 33}, {40, 17}, {200, 100}}) check(D, k);
}

// No memory is read or written by what a mask holds: what is missing are zeros, what is too much is left out.
TEST_P(SupportMask, AMaskOfAnotherNumberOfFeatures) {
  const std::vector<std::uint8_t> bits = {0x81, 0, 0, 0, 0,    0,    0, 0x40, 0, 0, 0, 0,
                                          0,    0, 0, 0, 0xff, 0xff, 0, 0,    0, 0, 0, 0};
  const Tensor masks = pool.integers(bits, {1, 3, 1, 8}), numbers = pool.poisoned(DType::u8, {1, 3, 1, 5});
  mask_unpack(ctx, masks, numbers);
  EXPECT_EQ(elements<std::uint8_t>(ctx, numbers),
            (std::vector<std::uint8_t>{0, 7, 62, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}));
}

TEST_P(SupportMask, ImpossibleRequestsAreRefused) {
  const Tensor numbers = pool.zeros(DType::u8, {1, 2, 1, 3}), masks = pool.zeros(DType::u8, {1, 2, 1, 4});
  EXPECT_THROW(mask_pack(ctx, numbers, pool.zeros(DType::u8, {1, 2, 1, 3})), Error);
  EXPECT_THROW(mask_pack(ctx, numbers, pool.zeros(DType::u8, {1, 3, 1, 4})), Error);
  EXPECT_THROW(mask_unpack(ctx, masks, pool.zeros(DType::f32, {1, 2, 1, 3})), Error);
}

SFA_ON_EVERY_DEVICE(SupportMask);

}  // namespace
}  // namespace sfa::test
