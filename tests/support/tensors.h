// Tensors for tests: memory of their own, random contents that are the same everywhere, comparison norm by norm.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/context.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace sfa::test {

/// A contiguous tensor that owns its memory.
struct Owned {
  Buffer memory;
  Tensor t;
};

inline Owned make(Device device, DType type, std::initializer_list<std::int64_t> dims) {
  Owned o;
  o.t = Tensor(nullptr, type, device, dims);
  o.memory = Buffer(device, static_cast<std::size_t>(o.t.bytes()), "a test");
  o.t.data = o.memory.data();
  return o;
}

/// n standard normal numbers times `scale`; a pure function of (stream, place).
inline std::vector<float> normal_values(std::uint64_t stream, std::int64_t n, float scale = 1.0f) {
  std::vector<float> v(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = scale * normal_at(7, kPurposeTest, stream, i);
  return v;
}

/// n integers in [0, bound).
inline std::vector<std::int32_t> integer_values(std::uint64_t stream, std::int64_t n, std::int32_t bound) {
  std::vector<std::int32_t> v(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < v.size(); ++i)
    v[i] = static_cast<std::int32_t>(philox(7, kPurposeTest, stream, static_cast<std::uint32_t>(i))[0] %
                                     static_cast<std::uint32_t>(bound));
  return v;
}

/// Writes values into t (contiguous, f32 or bf16, any device), rounding to t's type.
inline void assign(const Context& ctx, const Tensor& t, const std::vector<float>& values) {
  require(static_cast<std::int64_t>(values.size()) == t.numel(), "test: {} values for {}", values.size(), t.describe());
  if (t.dtype == DType::f32) {
    ctx.copy(t.data, t.device, values.data(), Device::cpu, values.size() * 4);
  } else {
    require(t.dtype == DType::bf16, "test: assign to {}", t.describe());
    std::vector<std::uint16_t> bits(values.size());
    for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = bf16_bits(values[i]);
    ctx.copy(t.data, t.device, bits.data(), Device::cpu, bits.size() * 2);
    ctx.synchronize();
  }
  ctx.synchronize();
}

/// The stored bytes of a contiguous tensor.
inline std::vector<std::byte> bytes_of(const Context& ctx, const Tensor& t) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(t.bytes()));
  ctx.copy(bytes.data(), Device::cpu, t.data, t.device, bytes.size());
  ctx.synchronize();
  return bytes;
}

/// The values of a contiguous f32 or bf16 tensor.
inline std::vector<float> values_of(const Context& ctx, const Tensor& t) {
  const std::vector<std::byte> bytes = bytes_of(ctx, t);
  std::vector<float> values(static_cast<std::size_t>(t.numel()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (t.dtype == DType::f32) {
      std::memcpy(&values[i], &bytes[4 * i], 4);
    } else {
      std::uint16_t bits = 0;
      std::memcpy(&bits, &bytes[2 * i], 2);
      values[i] = bf16_value(bits);
    }
  }
  return values;
}

/// |got - want| / |want| in the Euclidean norm. Infinities must match exactly and do not count; a NaN, or an infinity
/// in the wrong place, gives infinity.
inline double norm_error(const std::vector<float>& got, const std::vector<float>& want) {
  double difference = 0, norm = 0;
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isinf(want[i]) && got[i] == want[i]) continue;
    if (!std::isfinite(got[i]) || !std::isfinite(want[i])) return std::numeric_limits<double>::infinity();
    const double d = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    difference += d * d;
    norm += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  if (difference == 0) return 0;
  return std::sqrt(difference / std::max(norm, 1e-30));
}

/// Sums of `terms` products in f32 differ between two orders of addition by about sqrt(terms) roundings; eight times
/// that is allowed.
inline double f32_tolerance(std::int64_t terms) {
  return 8 * std::sqrt(static_cast<double>(terms) + 16) * std::ldexp(1.0, -24);
}

/// Two computations in the same bf16 arithmetic agree but for elements that rounded to the other neighbour, one part in
/// 2^8 away, at each of `roundings` stages.
inline double bf16_tolerance(int roundings = 1) {
  return roundings * std::ldexp(1.0, -8);
}

}  // namespace sfa::test
