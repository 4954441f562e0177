// Element types of tensors, and the bf16 arithmetic that the CPU needs to imitate a GPU.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sfa {

enum class DType : std::uint8_t { f32, bf16, f16, i32, u8, u16, u32, i64 };

/// Bytes of one element.
constexpr std::size_t size_of(DType type) {
  switch (type) {
    case DType::f32:
    case DType::i32:
    case DType::u32:
      return 4;
    case DType::bf16:
    case DType::f16:
    case DType::u16:
      return 2;
    case DType::u8:
      return 1;
    case DType::i64:
      return 8;
  }
  return 0;
}

/// "f32", "bf16", ...: the spelling used in checkpoints and messages.
std::string_view name_of(DType type);
/// The inverse of name_of; throws Error on an unknown name.
DType dtype_from_name(std::string_view name);

/// Rounds to the nearest bf16 value, ties to even, NaN kept a NaN; the result is returned as float.
inline float round_to_bf16(float x) {
  std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return x;
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return std::bit_cast<float>(bits & 0xffff0000u);
}

/// The 16 stored bits of round_to_bf16(x).
inline std::uint16_t bf16_bits(float x) {
  std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x0040u);
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<std::uint16_t>(bits >> 16);
}

/// The value of 16 stored bf16 bits.
inline float bf16_value(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace sfa
