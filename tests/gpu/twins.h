// CUDA against the CPU: every tensor exists twice with the same contents. In bf16 the CPU holds f32 tensors of bf16
// values and rounds what it stores. Outputs start as NaN, so that an element that nobody writes is seen.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "support/tensors.h"

namespace sfa::test {

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
    return filled(dims, normal_values(stream_++, Tensor(nullptr, DType::f32, Device::cpu, dims).numel(), scale),
                  gpu_type);
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

  /// Runs on the GPU with scratch that is planned first, exactly as a model does.
  template <class F>
  void on_gpu(F&& f) {
    Arena scratch("scratch", Device::cuda);
    gpu_->planning = true;
    f(*gpu_, scratch);
    gpu_->planning = false;
    scratch.bind();
    f(*gpu_, scratch);
    gpu_->synchronize();
  }
  template <class F>
  void on_cpu(F&& f) {
    Arena scratch("scratch", Device::cpu);
    cpu_.planning = true;
    f(cpu_, scratch);
    cpu_.planning = false;
    scratch.bind();
    f(cpu_, scratch);
  }

  double error(const Twin& twin) { return norm_error(values_of(*gpu_, twin.gpu.t), values_of(cpu_, twin.cpu.t)); }
  std::vector<std::byte> gpu_bytes(const Twin& twin) { return bytes_of(*gpu_, twin.gpu.t); }

  DType type_ = DType::f32;
  std::uint64_t stream_ = 0;
  Context cpu_{Device::cpu};
  std::unique_ptr<Context> gpu_;
};

inline constexpr DType kFloatTypes[] = {DType::f32, DType::bf16};

}  // namespace sfa::test
