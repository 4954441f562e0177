#include "core/dtype.h"

#include <array>
#include <utility>

#include "core/error.h"

namespace sfa {
namespace {
constexpr std::array<std::pair<DType, std::string_view>, 8> kNames{{{DType::f32, "f32"},
                                                                    {DType::bf16, "bf16"},
                                                                    {DType::f16, "f16"},
                                                                    {DType::i32, "i32"},
                                                                    {DType::u8, "u8"},
                                                                    {DType::u16, "u16"},
                                                                    {DType::u32, "u32"},
                                                                    {DType::i64, "i64"}}};
}  // namespace

std::string_view name_of(DType type) {
  for (const auto& [value, name] : kNames)
    if (value == type) return name;
  fail("internal error: dtype {} has no name", static_cast<int>(type));
}

DType dtype_from_name(std::string_view name) {
  for (const auto& [value, known] : kNames)
    if (known == name) return value;
  fail("unknown dtype '{}'; known are f32, bf16, f16, i32, u8, u16, u32, i64", name);
}

}  // namespace sfa
