#include "hf/element.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "core/dtype.h"
#include "core/error.h"

namespace sfa::hf {

float f16_value(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu, fraction = bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent > 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float tiny = static_cast<float>(fraction) * 0x1p-24f;  // zero or subnormal: exact in float
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(tiny));
}

std::uint16_t f16_bits(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {  // below 2^-14: multiples of 2^-24; the addition rounds to nearest even
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

bool is_weight_dtype(std::string_view dtype) {
  return dtype == "F32" || dtype == "BF16" || dtype == "F16";
}

void decode_elements(std::string_view dtype, std::span<const std::byte> bytes, std::span<float> out) {
  require(is_weight_dtype(dtype), "internal error: elements of {} are not read", dtype);
  const auto n = static_cast<std::int64_t>(out.size());
  if (dtype == "F32") {
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return;
  }
  const bool half = dtype == "F16";
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint16_t raw = 0;
    std::memcpy(&raw, bytes.data() + 2 * i, sizeof raw);
    out[static_cast<std::size_t>(i)] = half ? f16_value(raw) : bf16_value(raw);
  }
}

void encode_elements(std::string_view dtype, std::span<const float> values, std::vector<std::byte>& out,
                     const std::string& tensor) {
  require(is_weight_dtype(dtype), "internal error: elements of {} are not written", dtype);
  const auto n = static_cast<std::int64_t>(values.size());
  out.resize(values.size() * (dtype == "F32" ? 4 : 2));
  if (dtype == "F32") {
    std::memcpy(out.data(), values.data(), out.size());
    return;
  }
  const bool half = dtype == "F16";
  bool overflow = false;
#pragma omp parallel for schedule(static) reduction(|| : overflow)
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = values[static_cast<std::size_t>(i)];
    const std::uint16_t raw = half ? f16_bits(x) : bf16_bits(x);
    overflow = overflow || (half && std::isfinite(x) && (raw & 0x7fffu) == 0x7c00u);
    std::memcpy(out.data() + 2 * i, &raw, sizeof raw);
  }
  require(!overflow, "the tensor '{}' has values beyond 65504, the largest of fp16; use bf16 or fp32", tensor);
}

std::string dtype_of_option(const std::string& option) {
  if (option == "fp32") return "F32";
  if (option == "bf16") return "BF16";
  if (option == "fp16") return "F16";
  fail("'{}' is not one of fp32, bf16, fp16", option);
}

std::string torch_name(std::string_view dtype) {
  return dtype == "F32" ? "float32" : dtype == "BF16" ? "bfloat16" : "float16";
}

}  // namespace sfa::hf
