// Tensor: a typed, strided view of memory that somebody else owns (an Arena, a file map, a test's vector).
// Copying a Tensor copies the view. Strides are in elements; the last dimension has stride 1 everywhere in this
// project.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/device.h"
#include "core/dtype.h"
#include "core/error.h"

namespace sfa {

struct Tensor {
  static constexpr int kMaxRank = 5;

  void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> stride{};

  Tensor() = default;
  /// A contiguous row-major view.
  Tensor(void* memory, DType type, Device where, std::initializer_list<std::int64_t> dims);

  [[nodiscard]] std::int64_t numel() const;
  [[nodiscard]] std::int64_t bytes() const { return numel() * static_cast<std::int64_t>(size_of(dtype)); }
  [[nodiscard]] bool contiguous() const;
  /// Not given. A tensor that an arena has only counted has a shape and no data, and is not empty.
  [[nodiscard]] bool empty() const { return rank == 0; }
  /// Dimension i; negative counts from the end.
  [[nodiscard]] std::int64_t dim(int i) const { return shape[static_cast<std::size_t>(i < 0 ? rank + i : i)]; }

  /// Elements [begin, begin + count) of dimension `axis`.
  [[nodiscard]] Tensor slice(int axis, std::int64_t begin, std::int64_t count) const;
  /// The same memory with another shape (one dimension may be -1: what is left); the view must be contiguous and the
  /// sizes equal.
  [[nodiscard]] Tensor view(std::initializer_list<std::int64_t> dims) const;
  /// Splits the last dimension into [parts, last / parts].
  [[nodiscard]] Tensor split_last(std::int64_t parts) const;

  /// The memory as T; checks that the dtype is T's.
  template <class T>
  [[nodiscard]] T* as() const;

  /// "[2, 3, 4] f32 cpu", for messages.
  [[nodiscard]] std::string describe() const;
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<std::uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct DTypeOf<std::uint16_t> {
  static constexpr DType value = DType::u16;
};
template <>
struct DTypeOf<std::uint32_t> {
  static constexpr DType value = DType::u32;
};
template <>
struct DTypeOf<std::int64_t> {
  static constexpr DType value = DType::i64;
};

}  // namespace sfa

/// Tensors are passed to messages as they are, so that nothing is formatted unless a message is made.
template <>
struct fmt::formatter<sfa::Tensor> : fmt::formatter<std::string> {
  template <class FormatContext>
  auto format(const sfa::Tensor& t, FormatContext& ctx) const {
    return fmt::formatter<std::string>::format(t.describe(), ctx);
  }
};

namespace sfa {

template <class T>
T* Tensor::as() const {
  require(dtype == DTypeOf<std::remove_const_t<T>>::value, "internal error: tensor {} read as another type", *this);
  return static_cast<T*>(data);
}

}  // namespace sfa
