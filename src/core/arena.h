// Arena: planned memory. The same planning code runs twice, once counting and once bound to real memory, so that what
// `sfa plan` prints is what a run takes and nothing is allocated after the first step.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <string>

#include "core/tensor.h"

namespace sfa {

/// Owns one block of CPU or GPU memory, aligned to 256 bytes.
class Buffer {
 public:
  Buffer() = default;
  /// Zero-filled memory; throws Error with the sizes when there is not enough.
  Buffer(Device device, std::size_t bytes, const std::string& what);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  [[nodiscard]] Device device() const { return device_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Device device_ = Device::cpu;
};

/// CPU memory to copy to and from `device`: page-locked for a GPU, ordinary for the CPU. Not zeroed; null when there is
/// not enough.
std::shared_ptr<void> transfer_memory(Device device, std::size_t bytes);

class Arena {
 public:
  explicit Arena(std::string name, Device device) : name_(std::move(name)), device_(device) {}

  /// A contiguous tensor; while counting its data is null.
  Tensor take(DType type, std::initializer_list<std::int64_t> dims);

  /// A point to return to: everything taken after mark() is given back by release(mark).
  [[nodiscard]] std::size_t mark() const { return used_; }
  void release(std::size_t mark) { used_ = mark; }

  /// Allocates what counting found (its high-water mark) and starts over, bound.
  void bind();
  [[nodiscard]] bool bound() const { return memory_.data() != nullptr; }
  /// Bytes at the high-water mark.
  [[nodiscard]] std::size_t peak() const { return peak_; }
  [[nodiscard]] std::size_t used() const { return used_; }
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] Device device() const { return device_; }

 private:
  std::string name_;
  Device device_;
  Buffer memory_;
  std::size_t used_ = 0, peak_ = 0;
};

/// Gives back at the end of a scope what was taken from a scratch arena in it.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  std::size_t mark_;
};

}  // namespace sfa
