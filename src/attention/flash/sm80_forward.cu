// Checks and dispatch in front of the sm_80 forward kernels.
#include <cuda_runtime_api.h>

#include <climits>

#include "attention/flash/flash_checks.h"
#include "attention/flash/flash_sm80.h"
#include "attention/flash/sm80_instances.h"
#include "core/error.h"

namespace sfa::flash {
namespace {

constexpr char kOp[] = "attention forward";

struct Instance {
  int Dqk, Dv;
  int (*dense)(const ForwardParams&, void*);
  int (*sparse24)(const ForwardParams&, void*);
};

/// In the order of what they cost: the first that has room for both sizes is taken.
constexpr Instance kInstances[] = {
    {32, 32, sm80_forward_d32, sm80_sparse24_d32},
    {32, 64, sm80_forward_d32_v64, sm80_sparse24_d32_v64},
    {64, 64, sm80_forward_d64, sm80_sparse24_d64},
    {64, 128, sm80_forward_d64_v128, sm80_sparse24_d64_v128},
    {128, 64, sm80_forward_d128_v64, sm80_sparse24_d128_v64},
    {96, 96, sm80_forward_d96, sm80_sparse24_d96},
    {128, 128, sm80_forward_d128, sm80_sparse24_d128},
    {192, 192, sm80_forward_d192, sm80_sparse24_d192},
    {256, 256, sm80_forward_d256, sm80_sparse24_d256},
};

const Instance& instance_for(const Shape& shape) {
  for (const Instance& instance : kInstances)
    if (shape.Dqk <= instance.Dqk && shape.Dv <= instance.Dv) return instance;
  fail("internal error: no sm_80 attention forward for head sizes {} and {}", shape.Dqk, shape.Dv);
}

}  // namespace

bool sm80_supported(const Shape& shape) {
  const auto served = [](int features) { return features >= 16 && features <= 256 && features % 16 == 0; };
  return served(shape.Dqk) && served(shape.Dv);
}

void sm80_forward(const ForwardParams& params, Product product, void* stream) {
  const Shape& s = params.shape;
  require(sm80_supported(s),
          "attention forward has no kernel for head sizes {} (q, k) and {} (v): multiples of 16 up to 256 have one",
          s.Dqk, s.Dv);
  require_shape(kOp, s);
  require((std::int64_t{s.Tq} + 31) / 32 * s.B * s.H <= INT_MAX,
          "attention forward: {} rows of {} heads and {} sequences are too many for one launch", s.Tq, s.H, s.B);
  require(params.scale > 0, "attention forward: the scale must be positive, not {}", params.scale);
  require(params.lse != nullptr, "attention forward: lse must be set");
  require_aligned(kOp, "q", params.q, params.q_stride);
  require_aligned(kOp, "k", params.k, params.k_stride);
  require_aligned(kOp, "v", params.v, params.v_stride);
  require_aligned(kOp, "out", params.out, params.out_stride);
  const Instance& instance = instance_for(s);
  const auto launch = product == Product::dense ? instance.dense : instance.sparse24;
  const auto status = static_cast<cudaError_t>(launch(params, stream));
  require(status == cudaSuccess, "attention forward failed to launch: {}", cudaGetErrorString(status));
}

}  // namespace sfa::flash
