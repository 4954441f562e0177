// Checks the sums by copy engines (dist/peer_sums.h) between 2, 3, 4 and 8 processes on the cards there are: several
// processes take one card where there are fewer, which no NCCL job may.
//   peer_sums_check [check]
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <thread>

#include "core/device_cuda.h"
#include "cuda/state.h"
#include "dist/collectives_check.h"
#include "dist/peer_sums.h"

using namespace sfa;
using namespace sfa::test;

namespace {

constexpr int kNoCard = 77;
constexpr auto kLimit = std::chrono::seconds(120);

/// Ranks that do nothing but sum in shared memory, on a stream beside the context's as those over NCCL do.
class SummingRanks final : public Communicator {
 public:
  SummingRanks(const Launch& launch, std::unique_ptr<ControlChannel> control)
      : Communicator(launch, std::move(control)) {
    SFA_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    SFA_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
  }
  ~SummingRanks() override {
    peers_.reset();
    cudaEventDestroy(event_);
    cudaStreamDestroy(stream_);
  }
  [[nodiscard]] std::string backend() const override { return "copy engines"; }
  bool share(const Tensor& t, std::int64_t together) override {
    control_->barrier(ControlChannel::kMain);  // nobody still pulls
    peers_.reset();
    control_->barrier(ControlChannel::kMain);  // nor has it mapped
    if (!t.empty()) peers_ = dist::PeerSums::connect(*control_, t, together);
    return peers_ != nullptr;
  }
  void reduce_scatter(Context& ctx, const Tensor& t, const std::vector<FlatRange>& parts) override {
    require(peers_ != nullptr && peers_->covers(t), "the tensor is not shared");
    after(ctx.cuda().stream, stream_);
    peers_->reduce_scatter(stream_, t, parts);
  }
  void join(Context& ctx) override {
    after(stream_, ctx.cuda().stream);
    if (peers_ != nullptr) peers_->add_pulled(ctx.cuda().stream);
  }
  void all_reduce(Context&, const Tensor&) override { fail("not here"); }
  void all_reduce_f64(Context&, const Tensor&) override { fail("not here"); }
  void all_gather(Context&, const Tensor&, const std::vector<FlatRange>&) override { fail("not here"); }
  void broadcast(Context&, const Tensor&, int) override { fail("not here"); }
  void exchange(Context&, const Tensor&, int, const Tensor&, int) override { fail("not here"); }

 private:
  void after(cudaStream_t first, cudaStream_t then) {
    SFA_CUDA_CHECK(cudaEventRecord(event_, first));
    SFA_CUDA_CHECK(cudaStreamWaitEvent(then, event_));
  }
  cudaStream_t stream_ = nullptr;
  cudaEvent_t event_ = nullptr;
  std::unique_ptr<dist::PeerSums> peers_;
};

/// What rounds: the sum has the bits of an addition in the order of the ranks, bf16 in f32 and rounded once.
void check_order(Checker& checker, DType type) {
  const std::int64_t n = 100'003;
  const int size = checker.ranks.size();
  const auto value = [](int rank, std::int64_t i) {
    return static_cast<float>(std::sin(0.37 * static_cast<double>(i) + 1.9 * rank) * static_cast<double>(1 + i % 100));
  };
  const auto held = [&](int rank, std::int64_t i) {
    return type == DType::bf16 ? bf16_value(bf16_bits(value(rank, i))) : value(rank, i);
  };
  std::vector<double> x;
  for (std::int64_t i = 0; i < n; ++i) x.push_back(value(checker.ranks.rank(), i));
  const Tensor t = checker.upload(type, x);
  require(checker.ranks.share(t, n), "the ranks don't reach each other's memory");
  const std::vector<FlatRange> parts = split_evenly(n, size, 64);
  checker.ranks.reduce_scatter(checker.ctx, t, parts);
  checker.expect(
      t, parts[static_cast<std::size_t>(checker.ranks.rank())],
      [&](std::int64_t i) {
        float sum = 0;
        for (int r = 0; r < size; ++r) sum += held(r, i);
        return sum;
      },
      "a sum that rounds");
  checker.ranks.share({}, 0);
}

void check_sums(Communicator& ranks) {
  Checker checker(ranks, Device::cuda);
  require(checker.shared(), "the ranks don't reach each other's memory");
  for (const DType type : {DType::f32, DType::bf16}) check_order(checker, type);
}

/// When one rank can't, none does.
void check_refusal(Communicator& ranks) {
  if (ranks.rank() == ranks.size() - 1) ::setenv("NCCL_P2P_DISABLE", "1", 1);
  Checker checker(ranks, Device::cuda);
  const Tensor t = checker.mine(DType::f32, 1000);
  require(!ranks.share(t, 10), "a rank was to refuse");
}

int as_rank(const Launch& launch, const std::function<void(Communicator&)>& work) {
  try {
    const std::size_t cards = cuda_ops::cards().size();
    if (cards == 0) return kNoCard;
    cuda_ops::use_device(launch.rank % static_cast<int>(cards));
    const auto line = [](const std::string& text) { std::fprintf(stderr, "%s\n", text.c_str()); };
    SummingRanks ranks(launch, std::make_unique<ControlChannel>(dist::Meeting{launch, 60, {}}, line));
    try {
      work(ranks);
    } catch (const std::exception& e) {
      ranks.control().give_up(e.what());
    }
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "rank %d: %s\n", launch.rank, e.what());
    return 1;
  }
}

/// The exit code of the first process that failed; 1 for those that had to be stopped.
int on_ranks(int size, const std::function<void(Communicator&)>& work) {
  char folder[] = "/tmp/peer_sums_XXXXXX";
  if (::mkdtemp(folder) == nullptr) return 1;
  std::vector<pid_t> running;
  for (int r = 0; r < size; ++r) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      Launch launch;
      launch.rank = launch.local_rank = r;
      launch.size = launch.local_size = size;
      launch.launcher = "peer_sums_check";
      launch.file = std::string(folder) + "/meeting";
      std::exit(as_rank(launch, work));
    }
    running.push_back(pid);
  }
  int code = 0;
  const auto begin = std::chrono::steady_clock::now();
  while (!running.empty()) {
    if (std::chrono::steady_clock::now() - begin > kLimit) {
      std::fprintf(stderr, "%zu of %d ranks hang\n", running.size(), size);
      for (const pid_t pid : running) ::kill(pid, SIGKILL);
      code = code == 0 ? 1 : code;
    }
    std::erase_if(running, [&](pid_t pid) {
      int status = 0;
      if (::waitpid(pid, &status, WNOHANG) != pid) return false;
      const int ended = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
      if (code == 0) code = ended;
      return true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  std::filesystem::remove_all(folder);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 2 || (argc == 2 && std::string(argv[1]) != "check")) {
    std::fprintf(stderr, "usage: peer_sums_check [check]\n");
    return 2;
  }
  // This process never touches CUDA: what it forks could not use it then.
  for (const int size : {2, 3, 4, 8})
    for (const bool refused : {false, true}) {
      const int code = on_ranks(size, refused ? check_refusal : check_sums);
      if (code == kNoCard) return kNoCard;
      if (code != 0) {
        std::printf("FAIL: sums by copy engines, %d ranks%s\n", size, refused ? ", one refuses" : "");
        return 1;
      }
    }
  std::printf("PASS: sums by copy engines over 2, 3, 4 and 8 ranks\n");
  return 0;
}
