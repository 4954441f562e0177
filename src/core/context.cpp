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
  require(t.contiguous(), "internal error: rounding of the strided tensor {}", t);
  float* data = t.as<float>();
  const std::int64_t n = t.numel();
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < n; ++i) data[i] = round_to_bf16(data[i]);
}

}  // namespace sfa
