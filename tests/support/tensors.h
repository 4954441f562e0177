// Memory for tests: tensors on a context's device, filled from CPU vectors and read back into them. The same test body
// then runs on the CPU and, where there is one, on a GPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <list>
#include <string>
#include <type_traits>
#include <vector>

#include "core/arena.h"
#include "core/context.h"
#include "core/tensor.h"

namespace sfa::test {

/// Owns what it hands out.
class Pool {
 public:
  explicit Pool(Context& ctx) : ctx_(ctx) {}

  Tensor zeros(DType type, std::initializer_list<std::int64_t> dims) {
    Tensor t(nullptr, type, ctx_.device(), dims);
    memory_.emplace_back(ctx_.device(), static_cast<std::size_t>(t.bytes()), "a test's tensor");
    t.data = memory_.back().data();
    return t;
  }

  /// Every byte 0xff: NaN in f32, bf16 and f16, so that what an op must overwrite can't pass by luck.
  Tensor poisoned(DType type, std::initializer_list<std::int64_t> dims) {
    const Tensor t = zeros(type, dims);
    upload(t, std::vector<std::uint8_t>(static_cast<std::size_t>(t.bytes()), 0xff).data());
    return t;
  }

  /// f32, or bf16 by rounding.
  Tensor floats(const std::vector<float>& values, std::initializer_list<std::int64_t> dims, DType type = DType::f32) {
    const Tensor t = zeros(type, dims);
    check(t, values.size());
    if (type == DType::bf16) {
      std::vector<std::uint16_t> bits;
      for (float v : values) bits.push_back(bf16_bits(v));
      upload(t, bits.data());
    } else {
      upload(t, values.data());
    }
    return t;
  }

  template <class T>
  Tensor integers(const std::vector<T>& values, std::initializer_list<std::int64_t> dims) {
    const Tensor t = zeros(DTypeOf<T>::value, dims);
    check(t, values.size());
    upload(t, values.data());
    return t;
  }

  [[nodiscard]] Context& context() const { return ctx_; }

 private:
  void upload(const Tensor& t, const void* from) {
    ctx_.copy(t.data, t.device, from, Device::cpu, static_cast<std::size_t>(t.bytes()));
    ctx_.synchronize();
  }
  static void check(const Tensor& t, std::size_t count) {
    require(static_cast<std::size_t>(t.numel()) == count, "test: {} values for {}", count, t.describe());
  }

  Context& ctx_;
  std::list<Buffer> memory_;
};

/// The raw elements of a view of any strides, row-major.
template <class T>
std::vector<T> elements(Context& ctx, const Tensor& t) {
  require(sizeof(T) == size_of(t.dtype), "test: {} read as elements of {} bytes", t.describe(), sizeof(T));
  std::int64_t extent = 1;
  for (int i = 0; i < t.rank; ++i) {
    if (t.dim(i) == 0) return {};
    extent += (t.dim(i) - 1) * t.stride[static_cast<std::size_t>(i)];
  }
  std::vector<T> all(static_cast<std::size_t>(extent)), out;
  ctx.synchronize();
  ctx.copy(all.data(), Device::cpu, t.data, t.device, all.size() * sizeof(T));
  ctx.synchronize();
  for (std::int64_t n = 0; n < t.numel(); ++n) {
    std::int64_t rest = n, at = 0;
    for (int i = t.rank - 1; i >= 0; --i) {
      at += rest % t.dim(i) * t.stride[static_cast<std::size_t>(i)];
      rest /= t.dim(i);
    }
    out.push_back(all[static_cast<std::size_t>(at)]);
  }
  return out;
}

/// The values of an f32 or bf16 view.
inline std::vector<float> values_of(Context& ctx, const Tensor& t) {
  if (t.dtype == DType::f32) return elements<float>(ctx, t);
  std::vector<float> out;
  for (std::uint16_t bits : elements<std::uint16_t>(ctx, t)) out.push_back(bf16_value(bits));
  return out;
}

/// Runs step(ctx, scratch) as the program does: once counting memory, once on what was counted.
template <class Step>
void run_planned(Context& ctx, Step step) {
  Arena scratch("scratch", ctx.device());
  Context counting = Context::for_planning(ctx.device());
  step(counting, scratch);
  scratch.bind();
  step(ctx, scratch);
  ctx.synchronize();
}

}  // namespace sfa::test
