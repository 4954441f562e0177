#include "core/context.h"

#include <cstring>
#include <fstream>

#include "core/build_config.h"
#include "core/device_cuda.h"

namespace sfa {

Context::Context(Device where) : device_(where) {
  if (where == Device::cpu) return;
  std::string why;
  require(cuda_available(&why), "no GPU can be used: {}", why);
  if constexpr (kHasCuda) cuda_ = cuda_ops::make_state();
}

Context::~Context() = default;

Context Context::for_planning(Device where) {
  return Context(where, PlanningOnly{});
}

void Context::synchronize() const {
  if constexpr (kHasCuda) {
    if (on_cuda()) cuda_ops::synchronize(*cuda_);
  }
}

void Context::copy(void* to, Device to_device, const void* from, Device from_device, std::size_t bytes) const {
  if (bytes == 0 || planning) return;
  if (to_device == Device::cpu && from_device == Device::cpu) {
    std::memmove(to, from, bytes);
    return;
  }
  if constexpr (kHasCuda) cuda_ops::copy(*cuda_, to, to_device, from, from_device, bytes);
}

void Context::copy_rows(const Tensor& to, const Tensor& from) const {
  const std::int64_t width = to.dim(2) * to.dim(3);
  require(to.rank == 4 && from.rank == 4 && to.shape == from.shape && to.dtype == from.dtype &&
              to.device == from.device && to.stride[2] == to.dim(3) && from.stride[2] == to.dim(3),
          "internal error: copy_rows from {} to {}", from, to);
  if (planning) return;
  const std::size_t element = size_of(to.dtype);
  const auto bytes = [&](std::int64_t n) { return static_cast<std::size_t>(n) * element; };
  for (std::int64_t b = 0; b < to.dim(0); ++b) {
    auto* target = static_cast<std::byte*>(to.data) + bytes(b * to.stride[0]);
    const auto* source = static_cast<const std::byte*>(from.data) + bytes(b * from.stride[0]);
    if constexpr (kHasCuda) {
      if (to.device == Device::cuda) {
        // Batch entries that follow each other at the distance of tokens are one run of rows.
        const bool joined = to.stride[0] == to.dim(1) * to.stride[1] && from.stride[0] == from.dim(1) * from.stride[1];
        cuda_ops::copy_2d(*cuda_, target, bytes(to.stride[1]), source, bytes(from.stride[1]), bytes(width),
                          static_cast<std::size_t>(joined ? to.dim(0) * to.dim(1) : to.dim(1)));
        if (joined) return;
        continue;
      }
    }
    for (std::int64_t t = 0; t < to.dim(1); ++t)
      std::memcpy(target + bytes(t * to.stride[1]), source + bytes(t * from.stride[1]), bytes(width));
  }
}

void Context::zero(const Tensor& t) const {
  require(t.contiguous(), "internal error: zero of the strided tensor {}", t);
  if (planning) return;
  if (t.device == Device::cpu) {
    std::memset(t.data, 0, static_cast<std::size_t>(t.bytes()));
  } else if constexpr (kHasCuda) {
    cuda_ops::zero(*cuda_, t.data, static_cast<std::size_t>(t.bytes()));
  }
}

std::string Context::device_name() const {
  if constexpr (kHasCuda) {
    if (on_cuda()) return cuda_ops::device_name();
  }
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "CPU";
}

bool cuda_available(std::string* why) {
  if constexpr (kHasCuda) {
    return cuda_ops::available(why);
  } else {
    if (why) *why = "this build has no CUDA backend (nvcc was not found when it was configured)";
    return false;
  }
}

void round_output(const Context& ctx, const Tensor& t) {
  if (!ctx.round_bf16 || ctx.planning || t.device != Device::cpu || t.empty()) return;
  require(t.contiguous() || (t.rank == 2 && t.stride[1] == 1), "internal error: rounding of the strided tensor {}", t);
  float* data = t.as<float>();
  const bool rows = !t.contiguous();
  const std::int64_t width = rows ? t.dim(1) : t.numel(), apart = rows ? t.stride[0] : width;
#pragma omp parallel for schedule(static) collapse(2)
  for (std::int64_t r = 0; r < (rows ? t.dim(0) : 1); ++r)
    for (std::int64_t i = 0; i < width; ++i) data[r * apart + i] = round_to_bf16(data[r * apart + i]);
}

}  // namespace sfa
