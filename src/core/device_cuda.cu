#include "core/device_cuda.h"

#include <cuda_profiler_api.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/gemm.h"
#include "cuda/state.h"

namespace sfa::cuda_ops {
namespace {

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

// Empty when device `index` can be used, otherwise a sentence.
std::string why_not(int index) {
  cudaDeviceProp properties{};
  const cudaError_t status = cudaGetDeviceProperties(&properties, index);
  if (status != cudaSuccess)
    return fmt::format("the GPU cannot be asked for its properties: {}", cudaGetErrorString(status));
  if (properties.major < 8)
    return fmt::format("{} has compute capability {}.{}; 8.0 (Ampere) or newer is needed", properties.name,
                       properties.major, properties.minor);
  return {};
}

std::string find_reason() {
  int driver = 0, runtime = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no NVIDIA driver is loaded";
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) return "the CUDA runtime cannot be asked for its version";
  // Drivers run every toolkit of their own major version and older ones.
  if (driver / 1000 < runtime / 1000)
    return fmt::format(
        "the NVIDIA driver supports CUDA {} and this build needs {}; install a newer driver or build with an older "
        "toolkit",
        version_text(driver), version_text(runtime));
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) return "no NVIDIA GPU is visible";
  if (status != cudaSuccess) return fmt::format("the NVIDIA driver reports: {}", cudaGetErrorString(status));
  int current = 0;
  cudaGetDevice(&current);
  return why_not(current);
}

}  // namespace

bool available(std::string* why) {
  const std::string reason = find_reason();
  cudaGetLastError();  // a failed question leaves no error behind for the next caller
  if (why != nullptr) *why = reason;
  return reason.empty();
}

std::shared_ptr<CudaState> make_state() {
  return std::make_shared<CudaState>();
}

int compute_capability() {
  int device = 0, major = 0, minor = 0;
  static const bool there = available(nullptr);
  if (!there) return 90;
  SFA_CUDA_CHECK(cudaGetDevice(&device));
  SFA_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  SFA_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor;
}

void* stream(const Context& ctx) {
  return ctx.cuda().stream;
}

std::string device_name() {
  int device = 0;
  cudaDeviceProp properties{};
  SFA_CUDA_CHECK(cudaGetDevice(&device));
  SFA_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

void* allocate(std::size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, std::max<std::size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  SFA_CUDA_CHECK(status);
  SFA_CUDA_CHECK(cudaMemset(memory, 0, bytes));
  SFA_CUDA_CHECK(cudaDeviceSynchronize());  // the contexts' streams do not wait for the default stream
  return memory;
}

void release(void* memory) noexcept {
  cudaFree(memory);
}

void* allocate_host(std::size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMallocHost(&memory, std::max<std::size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  SFA_CUDA_CHECK(status);
  return memory;
}

void release_host(void* memory) noexcept {
  cudaFreeHost(memory);
}

std::vector<Card> cards() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  std::vector<Card> all;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p{};
    if (cudaGetDeviceProperties(&p, i) == cudaSuccess)
      all.push_back({p.name, 10 * p.major + p.minor, p.totalGlobalMem});
  }
  cudaGetLastError();  // a failed question leaves no error behind for the next caller
  return all;
}

void use_device(int index) {
  SFA_CUDA_CHECK(cudaSetDevice(index));
}

std::string driver_cuda_version() {
  int driver = 0;
  const bool known = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
  cudaGetLastError();
  return known ? version_text(driver) : "";
}

OwnMemory own_memory() {
  // Measured on an H200 with CUDA 13.0: 526.8 MiB once a context is there, 12 to 18 MiB more by the end of a run,
  // whatever its size (tests/gpu/memory_test.cpp).
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  return {kBlasWorkspace, 527 * kMiB, 16 * kMiB};
}

std::pair<std::size_t, std::size_t> memory_free_total() {
  std::size_t free = 0, total = 0;
  SFA_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return {free, total};
}

std::string saved_products(const CudaState& state) {
  return saved_choices(state);
}

bool restore_products(CudaState& state, const std::string& text) {
  return restore_choices(state, text);
}

// Other threads (a checkpoint on its way to disk) may call CUDA meanwhile.
void recording_begin(const CudaState& state) {
  SFA_CUDA_CHECK(cudaStreamBeginCapture(state.stream, cudaStreamCaptureModeThreadLocal));
}

std::shared_ptr<void> recording_end(const CudaState& state) {
  cudaGraph_t graph{};
  cudaGraphExec_t ready{};
  SFA_CUDA_CHECK(cudaStreamEndCapture(state.stream, &graph));
  const cudaError_t status = cudaGraphInstantiate(&ready, graph, 0);
  cudaGraphDestroy(graph);
  SFA_CUDA_CHECK(status);
  return {ready, [](void* r) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(r)); }};
}

void recording_abort(const CudaState& state) noexcept {
  cudaGraph_t graph{};
  if (cudaStreamEndCapture(state.stream, &graph) == cudaSuccess && graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
}

void replay(const CudaState& state, void* recording) {
  SFA_CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(recording), state.stream));
}

void profiler_start() {
  SFA_CUDA_CHECK(cudaProfilerStart());
}

void profiler_stop() {
  SFA_CUDA_CHECK(cudaProfilerStop());
}

void synchronize(const CudaState& state) {
  SFA_CUDA_CHECK(cudaStreamSynchronize(state.stream));
}

void copy(const CudaState& state, void* to, Device to_device, const void* from, Device from_device, std::size_t bytes) {
  const bool to_gpu = to_device == Device::cuda, from_gpu = from_device == Device::cuda;
  const cudaMemcpyKind kind = to_gpu && from_gpu ? cudaMemcpyDeviceToDevice
                              : to_gpu           ? cudaMemcpyHostToDevice
                              : from_gpu         ? cudaMemcpyDeviceToHost
                                                 : cudaMemcpyHostToHost;
  SFA_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, state.stream));
}

void copy_2d(const CudaState& state, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
             std::size_t width, std::size_t rows) {
  SFA_CUDA_CHECK(
      cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, cudaMemcpyDeviceToDevice, state.stream));
}

void zero(const CudaState& state, void* memory, std::size_t bytes) {
  SFA_CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, state.stream));
}

std::shared_ptr<void> make_event() {
  cudaEvent_t event = nullptr;
  SFA_CUDA_CHECK(cudaEventCreate(&event));
  return {event, [](void* e) { cudaEventDestroy(static_cast<cudaEvent_t>(e)); }};
}

void record_event(const CudaState& state, void* event) {
  SFA_CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(event), state.stream));
}

bool event_done(void* event) {
  const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(event));
  if (status == cudaErrorNotReady) return false;
  SFA_CUDA_CHECK(status);
  return true;
}

double milliseconds_between(void* first, void* last) {
  float ms = 0;
  SFA_CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(last)));
  SFA_CUDA_CHECK(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(first), static_cast<cudaEvent_t>(last)));
  return ms;
}

}  // namespace sfa::cuda_ops
