// Where memory and work live.
#pragma once

#include <cstdint>

namespace sfa {
enum class Device : std::uint8_t { cpu, cuda };
constexpr const char* name_of(Device device) {
  return device == Device::cpu ? "cpu" : "cuda";
}
}  // namespace sfa
