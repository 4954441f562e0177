// Names of ops and parts of the model on a profiler's time line, through NVTX (header-only). Where no profiler listens
// a range is a test of one pointer.
#include <nvtx3/nvToolsExt.h>

#include "core/device_cuda.h"

namespace sfa::cuda_ops {
namespace {

class RangeObserver final : public OpObserver {
 public:
  void begin(Context&, const OpWork& work) override {
    nvtxRangePushA(work.shape.empty() ? work.kind.c_str() : (work.kind + " " + work.shape).c_str());
  }
  void end(Context&) override { nvtxRangePop(); }
  void enter(Context&, const std::string& part) override { nvtxRangePushA(part.c_str()); }
  void leave(Context&) override { nvtxRangePop(); }
};

}  // namespace

std::unique_ptr<OpObserver> make_range_observer() {
  return std::make_unique<RangeObserver>();
}

}  // namespace sfa::cuda_ops
