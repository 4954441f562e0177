#include "core/readback.h"

#include "core/build_config.h"
#include "core/device_cuda.h"

namespace sfa {

Readback::Readback(const Context& ctx, std::size_t bytes) : bytes_(bytes) {
  if constexpr (kHasCuda) {
    if (ctx.on_cuda()) {
      event_ = cuda_ops::make_event();
      memory_ = cuda_ops::allocate_host(bytes);
      require(memory_ != nullptr, "not enough page-locked host memory for {} bytes", bytes);
      return;
    }
  }
  host_.resize(bytes);
  memory_ = host_.data();
}

Readback::~Readback() {
  if constexpr (kHasCuda) {
    if (event_ != nullptr) cuda_ops::release_host(memory_);  // waits for the device, and so for the copy
  }
}

void Readback::start(const Context& ctx, const Tensor& from) {
  require(!under_way_ && static_cast<std::size_t>(from.bytes()) == bytes_, "internal error: readback of {}", from);
  ctx.copy(memory_, Device::cpu, from.data, from.device, bytes_);
  if constexpr (kHasCuda) {
    if (event_ != nullptr) cuda_ops::record_event(ctx.cuda(), event_.get());
  }
  under_way_ = true;
}

bool Readback::ready() {
  if (!under_way_) return false;
  if constexpr (kHasCuda) {
    if (event_ != nullptr && !cuda_ops::event_done(event_.get())) return false;
  }
  under_way_ = false;
  return true;
}

}  // namespace sfa
