// Elements of a checkpoint's tensors to float and back: F32, BF16, F16. What goes to float and back is the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sfa::hf {

/// The value of 16 stored IEEE binary16 bits.
float f16_value(std::uint16_t bits);
/// Rounds to the nearest binary16, ties to even; beyond 65504 infinity; NaN stays a NaN.
std::uint16_t f16_bits(float x);

/// True for the dtypes below.
bool is_weight_dtype(std::string_view dtype);

/// out[i] = element i of `bytes`, which hold out.size() elements of F32, BF16 or F16, of any alignment.
void decode_elements(std::string_view dtype, std::span<const std::byte> bytes, std::span<float> out);

/// The inverse. Throws Error naming `tensor` when a finite value is too large for F16.
void encode_elements(std::string_view dtype, std::span<const float> values, std::vector<std::byte>& out,
                     const std::string& tensor);

/// "fp32", "bf16", "fp16" as users say it -> "F32", "BF16", "F16", and to what config.json calls it ("float32", ...).
std::string dtype_of_option(const std::string& option);
std::string torch_name(std::string_view dtype);

}  // namespace sfa::hf
