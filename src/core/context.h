// Context: where the work of one model runs. Every op takes it first.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "core/arena.h"
#include "core/device.h"
#include "core/tensor.h"

namespace sfa {

class OpObserver;  // core/observer.h
struct CudaState;  // stream, cuBLASLt handle and workspace; defined in cuda/state.h, for .cu files

class Context {
 public:
  /// Throws Error with a sentence when the device is not there (no GPU, driver too old, built without CUDA).
  explicit Context(Device where);
  /// A context on which memory can be counted (planning is set) and nothing else; needs no such device.
  static Context for_planning(Device where);
  ~Context();
  Context(Context&&) = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  [[nodiscard]] Device device() const { return device_; }
  [[nodiscard]] bool on_cuda() const { return device_ == Device::cuda; }
  [[nodiscard]] CudaState& cuda() const { return *cuda_; }

  /// CPU only: every op rounds each element it stores to bf16 (tensors stay f32), which is the arithmetic of a GPU that
  /// keeps bf16 weights and activations. Losses, softmax statistics and gradients of parameters stay unrounded, as they
  /// do there.
  bool round_bf16 = false;

  /// True while memory is being counted: every op then takes from its scratch arena what it would take, and does
  /// nothing else. Running a model's step this way is how scratch memory is planned, so that the plan can't drift from
  /// the code.
  bool planning = false;

  /// Told of every op when set; not owned.
  OpObserver* observer = nullptr;

  /// Waits until all work queued on this context has finished; device faults surface here.
  void synchronize() const;
  /// Copies between any two places; asynchronous on the context's stream when a GPU is involved.
  void copy(void* to, Device to_device, const void* from, Device from_device, std::size_t bytes) const;
  /// Copies [B,T,heads,D] rows between two tensors of one device and shape; in each, the heads of a token lie side by
  /// side.
  void copy_rows(const Tensor& to, const Tensor& from) const;
  /// Sets bytes to zero.
  void zero(const Tensor& t) const;
  /// "NVIDIA H200" or the processor's name.
  [[nodiscard]] std::string device_name() const;

 private:
  struct PlanningOnly {};
  Context(Device where, PlanningOnly) : planning(true), device_(where) {}

  Device device_;
  std::shared_ptr<CudaState> cuda_;
};

/// True when a CUDA device can be used; otherwise `why` says what is missing.
bool cuda_available(std::string* why = nullptr);

/// CPU only, no-op otherwise: rounds the whole tensor when the context imitates bf16.
void round_output(const Context& ctx, const Tensor& t);

}  // namespace sfa
