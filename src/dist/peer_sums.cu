#include "dist/peer_sums.h"

#include <cuda.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace sfa::dist {
namespace {

constexpr std::int64_t kMostStaging = std::int64_t{256} << 20;
constexpr std::int64_t kAlignment = 256;
constexpr int kMostRanks = 64;  // of one machine
constexpr int kThreads = 256;

// The driver's functions are found at run time, so that nothing links libcuda.
template <class F>
F driver_function(const char* name) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &found);
  require(status == cudaSuccess && found == cudaDriverEntryPointSuccess && entry != nullptr,
          "the CUDA driver has no {} ({})", name, cudaGetErrorString(status));
  return reinterpret_cast<F>(entry);
}

void check_driver(CUresult status, const char* what) {
  require(status == CUDA_SUCCESS, "CUDA could not {}: driver error {}", what, static_cast<int>(status));
}

CUdeviceptr address(const void* p) {
  return reinterpret_cast<CUdeviceptr>(p);
}

/// Behind all of `stream`, its writes to memory included.
void write_counter(cudaStream_t stream, std::uint32_t* counter, std::uint32_t value) {
  static const auto write = driver_function<decltype(&cuStreamWriteValue32)>("cuStreamWriteValue32");
  check_driver(write(stream, address(counter), value, CU_STREAM_WRITE_VALUE_DEFAULT), "write a counter");
}

/// Until the counter has come to `value`; it may wrap around.
void wait_for_counter(cudaStream_t stream, std::uint32_t* counter, std::uint32_t value) {
  static const auto wait = driver_function<decltype(&cuStreamWaitValue32)>("cuStreamWaitValue32");
  check_driver(wait(stream, address(counter), value, CU_STREAM_WAIT_VALUE_GEQ), "wait for a counter");
}

/// IPC handles are those of whole allocations.
std::ptrdiff_t offset_in_allocation(const void* p) {
  static const auto range = driver_function<decltype(&cuMemGetAddressRange)>("cuMemGetAddressRange");
  CUdeviceptr base = 0;
  std::size_t size = 0;
  check_driver(range(&base, &size, address(p)), "find an allocation");
  return static_cast<std::ptrdiff_t>(address(p) - base);
}

/// Machines may have one name, but not one boot.
std::string boot_of_this_machine() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  return boot;
}

/// What a rank tells of itself.
struct Card {
  char boot[64] = {};
  cudaIpcMemHandle_t data{}, counters{};
  std::ptrdiff_t data_offset = 0, counters_offset = 0;
};

Card decode(const std::string& text) {
  Card card;
  require(text.size() == sizeof card, "a rank shares no memory");
  std::memcpy(&card, text.data(), sizeof card);
  return card;
}

/// to = the sum of the ranks' elements in their order; `to` holds those of `rank`, `others` the rest, one behind the
/// other.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_in_order(T* to, const T* others, std::int64_t distance, std::int64_t count, int rank, int size) {
  const std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int r = 0; r < size; ++r) sum += to_float(r == rank ? to[i] : others[(r < rank ? r : r - 1) * distance + i]);
  to[i] = from_float<T>(sum);
}

}  // namespace

PeerSums::PeerSums(int rank, int size, const Tensor& shared, std::int64_t together)
    : rank_(rank), size_(size), shared_(shared), peers_(static_cast<std::size_t>(size)) {
  const std::int64_t wanted = std::max<std::int64_t>(together, 1) * static_cast<std::int64_t>(size_of(shared.dtype));
  piece_ = ceil_div(std::min(wanted, kMostStaging / (size - 1)), kAlignment) * kAlignment;
}

void PeerSums::allocate() {
  const auto counters = 2 * static_cast<std::size_t>(size_) * sizeof *counters_;
  SFA_CUDA_CHECK(cudaMalloc(&counters_, counters));
  SFA_CUDA_CHECK(cudaMemset(counters_, 0, counters));
  SFA_CUDA_CHECK(cudaMalloc(&staging_, static_cast<std::size_t>((size_ - 1) * piece_)));
  SFA_CUDA_CHECK(cudaDeviceSynchronize());  // others write the counters from now on
}

PeerSums::~PeerSums() {
  cudaDeviceSynchronize();
  for (const Peer& peer : peers_)
    for (void* opened : peer.opened)
      if (opened != nullptr) cudaIpcCloseMemHandle(opened);
  cudaFree(counters_);
  cudaFree(staging_);
}

std::string PeerSums::handles() const {
  Card card;
  const std::string boot = boot_of_this_machine();
  require(!boot.empty(), "this machine can't be told from others");
  boot.copy(card.boot, sizeof card.boot - 1);
  SFA_CUDA_CHECK(cudaIpcGetMemHandle(&card.data, shared_.data));
  SFA_CUDA_CHECK(cudaIpcGetMemHandle(&card.counters, counters_));
  card.data_offset = offset_in_allocation(shared_.data);
  card.counters_offset = offset_in_allocation(counters_);
  return {reinterpret_cast<const char*>(&card), sizeof card};
}

void PeerSums::open(const std::vector<std::string>& handles) {
  const Card mine = decode(handles[static_cast<std::size_t>(rank_)]);
  for (int r = 0; r < size_; ++r) {
    Peer& peer = peers_[static_cast<std::size_t>(r)];
    if (r == rank_) {
      peer.data = static_cast<const std::byte*>(shared_.data);
      peer.counters = counters_;
      continue;
    }
    const Card card = decode(handles[static_cast<std::size_t>(r)]);
    require(std::string_view(card.boot) == mine.boot, "ranks are on several machines");
    SFA_CUDA_CHECK(cudaIpcOpenMemHandle(&peer.opened[0], card.data, cudaIpcMemLazyEnablePeerAccess));
    SFA_CUDA_CHECK(cudaIpcOpenMemHandle(&peer.opened[1], card.counters, cudaIpcMemLazyEnablePeerAccess));
    peer.data = static_cast<const std::byte*>(peer.opened[0]) + card.data_offset;
    peer.counters = reinterpret_cast<std::uint32_t*>(static_cast<std::byte*>(peer.opened[1]) + card.counters_offset);
  }
}

std::unique_ptr<PeerSums> PeerSums::connect(ControlChannel& control, const Tensor& shared, std::int64_t together) {
  std::unique_ptr<PeerSums> peers;
  // Whoever can't says so with an empty text; then nobody does, since all must.
  const auto tried = [&](const auto& work) {
    try {
      return work();
    } catch (const Error&) {
      cudaGetLastError();
      return std::string();
    }
  };
  const char* off = std::getenv("NCCL_P2P_DISABLE");
  const std::vector<std::string> all = control.gather(
      ControlChannel::kMain, tried([&] {
        require((off == nullptr || std::string_view(off) == "0") && control.size() <= kMostRanks, "switched off");
        peers.reset(new PeerSums(control.rank(), control.size(), shared, together));
        peers->allocate();
        return peers->handles();
      }));
  const std::vector<std::string> opened = control.gather(ControlChannel::kMain, tried([&] {
                                                           require(peers != nullptr, "this rank shares no memory");
                                                           peers->open(all);
                                                           return std::string("yes");
                                                         }));
  if (std::ranges::any_of(opened, &std::string::empty)) return nullptr;
  return peers;
}

bool PeerSums::covers(const Tensor& t) const {
  const auto* begin = static_cast<const std::byte*>(shared_.data);
  const auto* at = static_cast<const std::byte*>(t.data);
  return at >= begin && at + t.bytes() <= begin + shared_.bytes();
}

// Bytes [offset, offset + bytes) of the shared tensor, of all other ranks.
void PeerSums::pull(cudaStream_t stream, std::int64_t offset, std::int64_t bytes, bool first, bool last) {
  std::byte* to = staging_;
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    if (first) wait_for_counter(stream, ready(rank_, r), done_);
    SFA_CUDA_CHECK(cudaMemcpyAsync(to, peers_[static_cast<std::size_t>(r)].data + offset,
                                   static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream));
    if (last) write_counter(stream, pulled(r, rank_), done_);
    to += piece_;
  }
}

void PeerSums::add_pulled(cudaStream_t stream) {
  if (pulled_.empty()) return;
  const std::int64_t n = pulled_.numel();
  for_float_type(pulled_.dtype, "a sum over ranks", [&]<class T>() {
    add_in_order<<<blocks_for(n, kThreads), kThreads, 0, stream>>>(
        data_of<T>(pulled_), reinterpret_cast<const T*>(staging_), piece_ / static_cast<std::int64_t>(sizeof(T)), n,
        rank_, size_);
  });
  SFA_LAUNCH_CHECK();
  pulled_ = {};
}

void PeerSums::reduce_scatter(cudaStream_t stream, const Tensor& t, const std::vector<FlatRange>& parts) {
  const auto element = static_cast<std::int64_t>(size_of(t.dtype));
  const std::int64_t begin = static_cast<std::byte*>(t.data) - static_cast<std::byte*>(shared_.data);
  const auto part = [&](int r) { return parts[static_cast<std::size_t>(r)]; };
  ++done_;
  // First everybody's word that its elements are there; whoever waits below can't keep another waiting.
  for (int r = 0; r < size_; ++r)
    if (r != rank_ && part(r).count > 0) write_counter(stream, ready(r, rank_), done_);

  const FlatRange own = part(rank_);
  for (std::int64_t at = own.begin; at < own.end(); at += piece_ / element) {
    const std::int64_t count = std::min(piece_ / element, own.end() - at);
    add_pulled(stream);  // the staging memory is wanted again
    pull(stream, begin + at * element, count * element, at == own.begin, at + count == own.end());
    pulled_ = t.slice(0, at, count);
  }
  // What the others have pulled may change.
  for (int r = 0; r < size_; ++r)
    if (r != rank_ && part(r).count > 0) wait_for_counter(stream, pulled(rank_, r), done_);
}

}  // namespace sfa::dist
