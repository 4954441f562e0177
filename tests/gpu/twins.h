// CUDA against the CPU: every tensor exists twice with the same contents. In bf16 the CPU holds f32 tensors of bf16
// values and rounds what it stores. Outputs start as NaN, so that an element that nobody writes is seen.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "support/compare.h"
#include "support/tensors.h"

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

/// |got - want| / |want| in the Euclidean norm. Infinities must match exactly and do not count; a NaN, or an infinity
/// in the wrong place, gives infinity.
inline double twin_error(const std::vector<float>& got, const std::vector<float>& want) {
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

struct Twin {
  Owned cpu, gpu;
};

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (!cuda_available(&why)) GTEST_SKIP() << "no GPU can be used: " << why;
    gpu_ = std::make_unique<Context>(Device::cuda);
  }

  /// Activations' type of the case that follows.
  void use(DType type) {
    type_ = type;
    cpu_.round_bf16 = type == DType::bf16;
    stream_ = 0;
  }

  Twin filled(std::initializer_list<std::int64_t> dims, const std::vector<float>& values, DType gpu_type) {
    Twin twin{make(Device::cpu, DType::f32, dims), make(Device::cuda, gpu_type, dims)};
    std::vector<float> stored = values;
    if (gpu_type == DType::bf16)
      for (float& x : stored) x = round_to_bf16(x);
    assign(cpu_, twin.cpu.t, stored);
    assign(*gpu_, twin.gpu.t, stored);
    return twin;
  }
  Twin random(std::initializer_list<std::int64_t> dims, float scale = 1.0f) { return random(dims, scale, type_); }
  Twin random(std::initializer_list<std::int64_t> dims, float scale, DType gpu_type) {
    // Streams are cut from one long one: drawing is slower than most of what is tested.
    static const std::vector<float> source = normal(1'000'003, 0);
    std::vector<float> values(static_cast<std::size_t>(Tensor(nullptr, DType::f32, Device::cpu, dims).numel()));
    const std::size_t first = 7919 * stream_++;
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = scale * source[(first + i) % source.size()];
    return filled(dims, values, gpu_type);
  }
  Twin output(std::initializer_list<std::int64_t> dims) { return output(dims, type_); }
  Twin output(std::initializer_list<std::int64_t> dims, DType gpu_type) {
    const auto n = static_cast<std::size_t>(Tensor(nullptr, DType::f32, Device::cpu, dims).numel());
    return filled(dims, std::vector<float>(n, std::numeric_limits<float>::quiet_NaN()), gpu_type);
  }
  template <class T>
  Twin integers(std::initializer_list<std::int64_t> dims, const std::vector<T>& values) {
    Twin twin{make(Device::cpu, DTypeOf<T>::value, dims), make(Device::cuda, DTypeOf<T>::value, dims)};
    for (const Tensor* t : {&twin.cpu.t, &twin.gpu.t})
      gpu_->copy(t->data, t->device, values.data(), Device::cpu, values.size() * sizeof(T));
    gpu_->synchronize();
    return twin;
  }

  /// With scratch that is planned first, exactly as a model does.
  template <class F>
  void on_gpu(F&& f) {
    run_planned(*gpu_, f);
  }
  template <class F>
  void on_cpu(F&& f) {
    run_planned(cpu_, f);
  }

  double error(const Twin& twin) { return twin_error(values_of(*gpu_, twin.gpu.t), values_of(cpu_, twin.cpu.t)); }
  std::vector<std::byte> gpu_bytes(const Twin& twin) { return bytes_of(*gpu_, twin.gpu.t); }

  DType type_ = DType::f32;
  std::uint64_t stream_ = 0;
  Context cpu_{Device::cpu};
  std::unique_ptr<Context> gpu_;
};

inline constexpr DType kFloatTypes[] = {DType::f32, DType::bf16};

}  // namespace sfa::test
