// The NCCL backend. Operations run on a stream of their own: an event behind the context's work holds each back, and
// join() holds back the context. A thread asks NCCL for errors that no call returns (a broken link), and ends the job.
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <thread>
#include <utility>

#include "cuda/state.h"
#include "dist/mpi_session.h"
#include "dist/nccl_communicator.h"
#include "dist/nccl_library.cuh"
#include "dist/peer_sums.h"

namespace sfa::dist {
namespace {

void check(ncclResult_t status, const char* what) {
  require(status == ncclSuccess, "NCCL could not {}: {}", what, nccl().error_string(status));
}

ncclDataType_t type_of(const Tensor& t) {
  switch (t.dtype) {
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::i64:
      return ncclInt64;
    default:
      fail("internal error: a sum over ranks of {}", t);
  }
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const Launch& launch, std::unique_ptr<ControlChannel> control, std::shared_ptr<MpiSession> session)
      : Communicator(launch, std::move(control)), session_(std::move(session)) {
    // A rank whose start fails here would otherwise wait at its channel's end for those that wait for it in NCCL.
    control_->or_give_up([this] { connect(); });
  }
  ~NcclCommunicator() override {
    stop_ = true;
    watch_.join();
    cudaStreamSynchronize(stream_);
    peers_.reset();
    nccl().destroy(comm_);
    cudaEventDestroy(ready_);
    cudaEventDestroy(done_);
    cudaStreamDestroy(stream_);
    control_.reset();  // all ranks have come here before MPI ends
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  [[nodiscard]] std::string backend() const override {
    int version = 0;
    nccl().version(&version);
    return fmt::format("NCCL {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
  }

  void all_reduce(Context& ctx, const Tensor& t) override { sum(ctx, t, type_of(t)); }
  void all_reduce_f64(Context& ctx, const Tensor& bits) override {
    require(bits.dtype == DType::i64, "internal error: a sum of doubles over ranks of {}", bits);
    sum(ctx, bits, ncclFloat64);
  }
  void reduce_scatter(Context& ctx, const Tensor& t, const std::vector<FlatRange>& parts) override {
    begin(ctx, t);
    if (peers_ != nullptr && peers_->covers(t)) return peers_->reduce_scatter(stream_, t, parts);
    check(nccl().group_start(), "begin a group");
    for (int r = 0; r < size(); ++r) {
      const FlatRange& p = parts[static_cast<std::size_t>(r)];
      void* data = at(t, p);
      if (p.count > 0)
        check(nccl().reduce(data, data, static_cast<std::size_t>(p.count), type_of(t), ncclSum, r, comm_, stream_),
              "sum over ranks");
    }
    check(nccl().group_end(), "sum over ranks");
  }
  bool share(const Tensor& t, std::int64_t together) override {
    peers_.reset();
    if (!t.empty()) peers_ = PeerSums::connect(*control_, t, together);
    return peers_ != nullptr;
  }
  void all_gather(Context& ctx, const Tensor& t, const std::vector<FlatRange>& parts) override {
    begin(ctx, t);
    check(nccl().group_start(), "begin a group");
    for (int r = 0; r < size(); ++r) {
      const FlatRange& p = parts[static_cast<std::size_t>(r)];
      void* data = at(t, p);
      const std::size_t bytes = static_cast<std::size_t>(p.count) * size_of(t.dtype);
      if (bytes > 0) check(nccl().broadcast(data, data, bytes, ncclUint8, r, comm_, stream_), "gather from ranks");
    }
    check(nccl().group_end(), "gather from ranks");
  }
  void broadcast(Context& ctx, const Tensor& t, int root) override {
    begin(ctx, t);
    check(nccl().broadcast(t.data, t.data, static_cast<std::size_t>(t.bytes()), ncclUint8, root, comm_, stream_),
          "broadcast");
  }
  void exchange(Context& ctx, const Tensor& out, int to, const Tensor& in, int from) override {
    begin(ctx, out.empty() ? in : out);
    check(nccl().group_start(), "begin a group");
    if (!out.empty())
      check(nccl().send(out.data, static_cast<std::size_t>(out.bytes()), ncclUint8, to, comm_, stream_), "send");
    if (!in.empty())
      check(nccl().receive(in.data, static_cast<std::size_t>(in.bytes()), ncclUint8, from, comm_, stream_), "receive");
    check(nccl().group_end(), "exchange with ranks");
  }
  void join(Context& ctx) override {
    SFA_CUDA_CHECK(cudaEventRecord(done_, stream_));
    SFA_CUDA_CHECK(cudaStreamWaitEvent(ctx.cuda().stream, done_));
    if (peers_ != nullptr) peers_->add_pulled(ctx.cuda().stream);
  }

 private:
  void connect() {
    // All ranks load the library, or none waits for the others inside it.
    control_->agree([] { nccl(); });
    ncclUniqueId id{};
    if (rank() == 0) check(nccl().unique_id(&id), "make an id");
    const std::string text = control_->broadcast(ControlChannel::kMain, {id.internal, sizeof id.internal});
    require(text.size() == sizeof id.internal,
            "internal error: rank 0 sent an id of NCCL of {} bytes, {} were expected", text.size(), sizeof id.internal);
    std::memcpy(id.internal, text.data(), sizeof id.internal);
    check(nccl().init(&comm_, size(), id, rank()), "connect the GPUs");
    int least = 0, greatest = 0;
    SFA_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    SFA_CUDA_CHECK(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
    SFA_CUDA_CHECK(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming));
    SFA_CUDA_CHECK(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming));
    start_watch();
  }
  void begin(Context& ctx, const Tensor& t) {
    require(t.device == Device::cuda && t.contiguous(),
            "internal error: ranks over NCCL exchange tensors in GPU memory, not {}", t);
    SFA_CUDA_CHECK(cudaEventRecord(ready_, ctx.cuda().stream));
    SFA_CUDA_CHECK(cudaStreamWaitEvent(stream_, ready_));
  }
  void sum(Context& ctx, const Tensor& t, ncclDataType_t type) {
    begin(ctx, t);
    check(nccl().all_reduce(t.data, t.data, static_cast<std::size_t>(t.numel()), type, ncclSum, comm_, stream_),
          "sum over ranks");
  }
  static void* at(const Tensor& t, const FlatRange& p) {
    require(p.begin >= 0 && p.count >= 0 && p.end() <= t.numel(), "internal error: part [{}, {}) of {}", p.begin,
            p.end(), t);
    return static_cast<std::byte*>(t.data) + p.begin * static_cast<std::int64_t>(size_of(t.dtype));
  }

  void start_watch() {
    // Signals belong to the thread that trains.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    watch_ = std::thread([this] {
      while (!stop_) {
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
        ncclResult_t status = ncclSuccess;
        if (nccl().async_error(comm_, &status) == ncclSuccess && status != ncclSuccess && status != ncclInProgress)
          control_->give_up(fmt::format("NCCL reports: {}", nccl().error_string(status)));
      }
    });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  std::shared_ptr<MpiSession> session_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t ready_ = nullptr, done_ = nullptr;
  std::unique_ptr<PeerSums> peers_;
  std::atomic<bool> stop_{false};
  std::thread watch_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(const Launch& launch, std::unique_ptr<ControlChannel> control,
                                                     std::shared_ptr<MpiSession> session) {
  return std::make_unique<NcclCommunicator>(launch, std::move(control), std::move(session));
}

}  // namespace sfa::dist
