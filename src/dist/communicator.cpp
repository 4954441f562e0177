#include "dist/communicator.h"

#include <algorithm>

#include "core/build_config.h"
#include "core/device_cuda.h"
#include "core/error.h"
#include "dist/mpi_session.h"
#include "dist/nccl_communicator.h"

namespace sfa {
namespace {

class SingleCommunicator final : public Communicator {
 public:
  SingleCommunicator() : Communicator(Launch{}, std::make_unique<ControlChannel>()) {}
  [[nodiscard]] std::string backend() const override { return "single"; }
  void all_reduce(Context&, const Tensor&) override {}
  void all_reduce_f64(Context&, const Tensor&) override {}
  void reduce_scatter(Context&, const Tensor&, const std::vector<FlatRange>&) override {}
  void all_gather(Context&, const Tensor&, const std::vector<FlatRange>&) override {}
  void broadcast(Context&, const Tensor&, int) override {}
  void exchange(Context& ctx, const Tensor& out, int, const Tensor& in, int) override {
    require(out.empty() == in.empty() && out.bytes() == in.bytes(), "internal error: one rank sends to nobody");
    if (!out.empty()) ctx.copy(in.data, in.device, out.data, out.device, static_cast<std::size_t>(out.bytes()));
  }
  void join(Context&) override {}
};

// Before anything of a library is touched: then a rank that is refused can simply end.
void require_served(const Launch& launch, Device device) {
  if (device == Device::cuda) {
    require(kHasNccl,
            "{} ranks were started by {}, but this build has no NCCL, over which GPUs talk; build with -DSFA_NCCL=ON "
            "(nccl.h, libnccl-dev), or start one process",
            launch.size, launch.launcher);
    if constexpr (kHasCuda) {
      require_gpu_for(launch, static_cast<int>(cuda_ops::cards().size()));
      cuda_ops::use_device(launch.local_rank);
    }
    return;
  }
  require(kHasMpi,
          "{} ranks were started by {}, but this build has no MPI, over which ranks on CPUs talk; build with "
          "-DSFA_MPI=ON (libopenmpi-dev), or start one process",
          launch.size, launch.launcher);
  require(launch.mpi,
          "{} ranks were started by {} without MPI, over which ranks on CPUs talk; start them with mpirun (or srun "
          "--mpi=pmix)",
          launch.size, launch.launcher);
}

}  // namespace

std::vector<FlatRange> split_evenly(std::int64_t n, int parts, std::int64_t alignment) {
  const std::int64_t each = ((n + parts - 1) / parts + alignment - 1) / alignment * alignment;
  std::vector<FlatRange> all;
  for (int r = 0; r < parts; ++r) {
    const std::int64_t begin = std::min(n, r * each);
    all.push_back({begin, std::min(n, begin + each) - begin});
  }
  return all;
}

std::unique_ptr<Communicator> make_single_communicator() {
  return std::make_unique<SingleCommunicator>();
}

std::unique_ptr<Communicator> make_communicator(const Launch& launch, Device device, double timeout_s,
                                                std::function<void(const std::string&)> line) {
  if (launch.size == 1) return make_single_communicator();
  require_served(launch, device);
  dist::Meeting meeting{launch, timeout_s, {}};
  std::shared_ptr<dist::MpiSession> mpi;
  if constexpr (kHasMpi) {
    if (launch.mpi) {
      mpi = dist::start_mpi(launch);
      meeting.broadcast = [mpi](std::string text) { return mpi->broadcast(std::move(text)); };
    }
  }
  auto control = std::make_unique<ControlChannel>(meeting, std::move(line));
  if constexpr (kHasNccl) {
    if (device == Device::cuda) return dist::make_nccl_communicator(launch, std::move(control), std::move(mpi));
  }
  if constexpr (kHasMpi) return dist::make_mpi_communicator(launch, std::move(control), std::move(mpi));
  return make_single_communicator();
}

}  // namespace sfa
