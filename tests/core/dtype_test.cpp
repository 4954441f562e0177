// Element types, rounding to bf16, and the vectorisable exponential.
#include "core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/simd.h"

namespace sfa {
namespace {

TEST(DType, NamesAndSizesGoBothWays) {
  for (DType type : {DType::f32, DType::bf16, DType::f16, DType::i32, DType::u8, DType::u16, DType::u32, DType::i64})
    EXPECT_EQ(dtype_from_name(name_of(type)), type);
  EXPECT_EQ(size_of(DType::f32), 4u);
  EXPECT_EQ(size_of(DType::bf16), 2u);
  EXPECT_EQ(size_of(DType::u8), 1u);
  EXPECT_EQ(size_of(DType::i64), 8u);
  try {
    (void)dtype_from_name("fp32");
    FAIL() << "an unknown name was taken";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("fp32"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("bf16"), std::string::npos) << e.what();
  }
}

TEST(Bf16, RoundsToNearestTiesToEven) {
  const float one = 1.0f, up = 1.0078125f;  // neighbours in bf16
  EXPECT_EQ(round_to_bf16(1.00390625f), one) << "half way: down to the even mantissa";
  EXPECT_EQ(round_to_bf16(std::nextafter(1.00390625f, 2.0f)), up);
  EXPECT_EQ(round_to_bf16(1.01171875f), 1.015625f) << "half way: up to the even mantissa";
  EXPECT_EQ(round_to_bf16(-1.00390625f), -one);
  EXPECT_EQ(round_to_bf16(std::numeric_limits<float>::max()), std::numeric_limits<float>::infinity());
  EXPECT_EQ(round_to_bf16(-std::numeric_limits<float>::infinity()), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::signbit(round_to_bf16(-0.0f)));
  EXPECT_TRUE(std::isnan(round_to_bf16(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Bf16, StoredBitsAndValuesAgreeOverAllOfThem) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = bf16_value(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_value(bf16_bits(value))));
      continue;
    }
    ASSERT_EQ(bf16_bits(value), bits);
    ASSERT_EQ(round_to_bf16(value), value);
  }
  // A NaN whose payload lies in the low bits alone must not become an infinity.
  EXPECT_TRUE(std::isnan(bf16_value(bf16_bits(std::bit_cast<float>(0x7f800001u)))));
  for (float x : {0.1f, -3.14159f, 1e-20f, 65504.0f, 1.00390625f})
    EXPECT_EQ(bf16_value(bf16_bits(x)), round_to_bf16(x));
}

TEST(SimdExp, IsWithinTwoUnitsInTheLastPlace) {
  double worst = 0;
  for (float x = -87.0f; x < 88.0f; x += 0.00173f) {
    const double want = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::fabs(static_cast<double>(simd::exp(x)) - want) / want);
  }
  EXPECT_LE(worst, 2.0 * 1.1920929e-7);
  EXPECT_EQ(simd::exp(0.0f), 1.0f);
}

TEST(SimdExp, EndsOfTheRange) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(simd::exp(-inf), 0.0f);
  EXPECT_EQ(simd::exp(-200.0f), 0.0f);
  EXPECT_EQ(simd::exp(inf), inf);
  EXPECT_EQ(simd::exp(200.0f), inf);
  EXPECT_TRUE(std::isnan(simd::exp(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_NEAR(simd::exp(-87.25f) / std::exp(-87.25f), 1.0f, 1e-6f);
  EXPECT_NEAR(simd::exp(88.25f) / std::exp(88.25f), 1.0f, 1e-6f);
}

}  // namespace
}  // namespace sfa
