// Memory, streams and properties of the GPU, for core/arena.cpp and core/context.cpp. No CUDA type shows here.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/context.h"
#include "core/device.h"
#include "core/observer.h"

namespace sfa::cuda_ops {

/// True when a GPU can be used; otherwise `why` is a sentence that says what is missing and what would be right
/// (no driver, driver older than the toolkit of this build, no card, card older than compute capability 8.0).
bool available(std::string* why);

/// Stream, cuBLASLt handle and workspace on the current device.
std::shared_ptr<CudaState> make_state();
std::string device_name();
/// 90 for 9.0. Where no card is there, 9.0 is assumed: then memory can be planned and nothing else be done.
int compute_capability();
/// The context's cudaStream_t, for callers that pass it on without knowing CUDA's types.
void* stream(const Context& ctx);

/// Zero-filled device memory, aligned to 256 bytes; null when there is not enough.
void* allocate(std::size_t bytes);
void release(void* memory) noexcept;
/// Page-locked CPU memory, to which copies run at full speed and asynchronously; null when there is not enough.
void* allocate_host(std::size_t bytes);
void release_host(void* memory) noexcept;
/// Bytes that this process takes on a card beside what it allocates by itself.
struct OwnMemory {
  std::size_t workspace = 0;  // cuBLASLt's, allocated with the stream
  std::size_t context = 0;    // CUDA's context, there from the first call on
  std::size_t later = 0;      // kernels and local memory, loaded when first used
};
OwnMemory own_memory();
struct Card {
  std::string name;
  int compute_capability = 0;
  std::size_t memory = 0;  // bytes in all
};
/// Every card that CUDA shows to this process; none when it can't be asked. Takes no memory on them.
std::vector<Card> cards();
/// Work and memory of this thread go to card `index` from now on.
void use_device(int index);
/// CUDA version that the driver supports, "13.0"; empty when there is none.
std::string driver_cuda_version();
/// Free and total bytes of the card.
std::pair<std::size_t, std::size_t> memory_free_total();

/// Which algorithms matrix products run with, as text, and the way back (cuda/gemm.h).
std::string saved_products(const CudaState& state);
bool restore_products(CudaState& state, const std::string& text);

/// Work that is recorded once and queued again and again by one call (a CUDA graph). Between recording_begin and
/// recording_end what is queued on the state's stream is not run but written down, with its addresses and arguments; it
/// must neither allocate nor wait. When it fails, recording_abort leaves the stream usable.
void recording_begin(const CudaState& state);
std::shared_ptr<void> recording_end(const CudaState& state);
void recording_abort(const CudaState& state) noexcept;
void replay(const CudaState& state, void* recording);

/// An observer that names ops and parts of the model for profilers (NVTX ranges).
std::unique_ptr<OpObserver> make_range_observer();
/// Tells a profiler that was started with its capture off (`nsys --capture-range=cudaProfilerApi`) to record, or to
/// stop.
void profiler_start();
void profiler_stop();

/// Waits for the state's stream; a fault of any kernel before it is thrown here.
void synchronize(const CudaState& state);
/// Asynchronous on the state's stream (a copy from or to pageable CPU memory returns when that memory may be reused).
void copy(const CudaState& state, void* to, Device to_device, const void* from, Device from_device, std::size_t bytes);
/// `rows` runs of `width` bytes between two places on the GPU, at distances `to_pitch` and `from_pitch`.
void copy_2d(const CudaState& state, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
             std::size_t width, std::size_t rows);
void zero(const CudaState& state, void* memory, std::size_t bytes);

/// A cudaEvent_t that takes times.
std::shared_ptr<void> make_event();
void record_event(const CudaState& state, void* event);
/// True when the work before the event's last record is through; never blocks.
bool event_done(void* event);
/// Waits for `last`.
double milliseconds_between(void* first, void* last);

}  // namespace sfa::cuda_ops
