#include "core/arena.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/build_config.h"
#include "core/device_cuda.h"

namespace sfa {
namespace {
constexpr std::size_t kAlign = 256;
std::size_t round_up(std::size_t n) {
  return (n + kAlign - 1) / kAlign * kAlign;
}
}  // namespace

Buffer::Buffer(Device device, std::size_t bytes, const std::string& what) : bytes_(round_up(bytes)), device_(device) {
  if (bytes_ == 0) return;
  if (device == Device::cpu) {
    data_ = std::aligned_alloc(kAlign, bytes_);
    require(data_ != nullptr, "not enough memory for {}: {:.2f} GiB were asked for", what,
            static_cast<double>(bytes_) / (1 << 30));
    std::memset(data_, 0, bytes_);
    return;
  }
  if constexpr (kHasCuda) {
    data_ = cuda_ops::allocate(bytes_);
    if (data_ == nullptr) {
      const auto [free, total] = cuda_ops::memory_free_total();
      fail("not enough GPU memory for {}: {:.2f} GiB were asked for, {:.2f} of {:.2f} GiB are free", what,
           static_cast<double>(bytes_) / (1 << 30), static_cast<double>(free) / (1 << 30),
           static_cast<double>(total) / (1 << 30));
    }
  } else {
    fail("this build has no CUDA backend");
  }
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (device_ == Device::cpu) {
    std::free(data_);
  } else if constexpr (kHasCuda) {
    cuda_ops::release(data_);
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)), device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

std::shared_ptr<void> transfer_memory(Device device, std::size_t bytes) {
  if (device == Device::cpu) return {std::aligned_alloc(kAlign, std::max(round_up(bytes), kAlign)), std::free};
  if constexpr (kHasCuda) return {cuda_ops::allocate_host(bytes), cuda_ops::release_host};
  fail("this build has no CUDA backend");
}

Tensor Arena::take(DType type, std::initializer_list<std::int64_t> dims) {
  Tensor t(nullptr, type, device_, dims);
  const std::size_t begin = used_;
  used_ += round_up(static_cast<std::size_t>(t.bytes()));
  peak_ = std::max(peak_, used_);
  if (bound()) {
    require(used_ <= memory_.bytes(), "internal error: the {} arena was planned with {} bytes and needs {}", name_,
            memory_.bytes(), used_);
    t.data = static_cast<std::byte*>(memory_.data()) + begin;
  }
  return t;
}

void Arena::bind() {
  require(!bound(), "internal error: the {} arena was bound twice", name_);
  memory_ = Buffer(device_, std::max(peak_, kAlign), "the " + name_ + " arena");
  used_ = 0;
}

}  // namespace sfa
