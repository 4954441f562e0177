// binary16 and bfloat16 to float and back.
#include "hf/element.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"

namespace sfa::hf {
namespace {

// The value by the definition of the format.
double by_definition(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31)
    return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

TEST(Element, EveryBinary16GoesToFloatAndBack) {
  for (std::uint32_t n = 0; n < 65536; ++n) {
    const auto bits = static_cast<std::uint16_t>(n);
    const double expected = by_definition(bits);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(f16_value(bits)));
      EXPECT_TRUE(std::isnan(f16_value(f16_bits(f16_value(bits)))));
      continue;
    }
    EXPECT_EQ(f16_value(bits), expected);
    EXPECT_EQ(f16_bits(f16_value(bits)), bits);
  }
}

TEST(Element, RoundsToTheNearestTiesToEven) {
  // Between two neighbours: below the middle, the middle, above it.
  for (std::uint32_t n = 0; n < 0x7bff; ++n) {
    const auto low = static_cast<std::uint16_t>(n), high = static_cast<std::uint16_t>(n + 1);
    const double middle = (by_definition(low) + by_definition(high)) / 2;
    const auto m = static_cast<float>(middle);
    ASSERT_EQ(m, middle);
    EXPECT_EQ(f16_bits(m), n % 2 ? high : low) << middle;
    EXPECT_EQ(f16_bits(std::nextafter(m, 0.0f)), low) << middle;
    EXPECT_EQ(f16_bits(std::nextafter(m, 1e30f)), high) << middle;
    EXPECT_EQ(f16_bits(-m), (n % 2 ? high : low) | 0x8000) << middle;
  }
  EXPECT_EQ(f16_bits(65519.996f), 0x7bff);
  EXPECT_EQ(f16_bits(65520.0f), 0x7c00);
  EXPECT_EQ(f16_bits(std::numeric_limits<float>::infinity()), 0x7c00);
  EXPECT_EQ(f16_bits(1e-30f), 0);
}

TEST(Element, EncodesAndDecodesEachType) {
  const std::vector<float> values{1.5f, -0.25f, 3.0f, 0.0f, -1024.0f};
  for (const char* dtype : {"F32", "BF16", "F16"}) {
    std::vector<std::byte> bytes;
    encode_elements(dtype, values, bytes, "t");
    EXPECT_EQ(bytes.size(), values.size() * (std::strcmp(dtype, "F32") == 0 ? 4 : 2));
    bytes.insert(bytes.begin(), std::byte{9});  // tensors may lie at odd addresses
    std::vector<float> back(values.size());
    decode_elements(dtype, std::span(bytes).subspan(1), back);
    EXPECT_EQ(back, values) << dtype;
  }
}

TEST(Element, ValuesTooLargeForFp16AreRefusedByName) {
  std::vector<std::byte> bytes;
  try {
    encode_elements("F16", std::vector<float>{1, 70000}, bytes, "lm_head.weight");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("'lm_head.weight' has values beyond 65504"), std::string::npos);
  }
}

}  // namespace
}  // namespace sfa::hf
