// Checks and dispatch in front of the forward kernels.
#include "attention/flash/flash_checks.h"
#include "attention/flash/flash_forward.h"

#include <cuda_runtime.h>

#include "attention/flash/forward_instances.h"
#include "core/error.h"

namespace sfa::flash {
namespace {

constexpr char kOp[] = "attention forward";

using Launcher = int (*)(const ForwardParams&, void*);

/// Up to this many query rows the 128-row tile loses less at the diagonal than the 192-row tile gains beyond it: 10 %
/// faster at 1024, 2 % slower at 2048.
constexpr int kShortRows = 1536;
/// From this many keys on larger blocks of them pay (forward_tuning.h).
constexpr int kLongSparse = 4096;
constexpr int kLongestSparse = 32768;

Launcher dense_launcher(const Shape& shape) {
  const auto fits = [&](int Dqk, int Dv) { return shape.Dqk <= Dqk && shape.Dv <= Dv; };
  if (shape.Dqk < 16 || shape.Dv < 16 || shape.Dqk % 16 != 0 || shape.Dv % 16 != 0) return nullptr;
  if (fits(32, 32)) return forward_dense_d32;
  if (fits(32, 64)) return forward_dense_d32_v64;
  if (fits(64, 64)) return shape.Tq <= kShortRows ? forward_dense_d64_short : forward_dense_d64;
  if (fits(64, 128)) return forward_dense_d64_v128;
  if (fits(128, 64)) return forward_dense_d128_v64;
  if (fits(96, 96)) return forward_dense_d96;
  if (fits(128, 128)) return forward_dense_d128;
  if (fits(192, 192)) return forward_dense_d192;
  if (fits(256, 256)) return forward_dense_d256;
  return nullptr;
}

Launcher sparse24_launcher(const Shape& shape) {
  if (shape.Dqk == 64 && shape.Dv == 64) {
    if (shape.Tq <= kShortRows) return forward_sparse24_d64_short;
    return shape.Tk < kLongSparse ? forward_sparse24_d64 : forward_sparse24_d64_long;
  }
  if (shape.Dqk == 128 && shape.Dv == 128)
    return shape.Tk < kLongestSparse ? forward_sparse24_d128 : forward_sparse24_d128_longest;
  if (shape.Dqk == 128 && shape.Dv == 64) return forward_sparse24_d128_v64;
  return nullptr;
}

Launcher launcher_for(const Shape& shape, Product product) {
  return product == Product::dense ? dense_launcher(shape) : sparse24_launcher(shape);
}

}  // namespace

bool forward_supported(const Shape& shape, Product product) {
  return launcher_for(shape, product) != nullptr;
}

void forward(const ForwardParams& params, Product product, void* stream) {
  const Shape& s = params.shape;
  const Launcher launch = launcher_for(s, product);
  require(launch != nullptr,
          "attention forward has no {} kernel for head sizes {} (q, k) and {} (v); use impl: reference",
          product == Product::dense ? "dense" : "2:4 sparse", s.Dqk, s.Dv);
  require_shape(kOp, s);
  require(params.scale > 0, "attention forward: the scale must be positive, not {}", params.scale);
  require(params.lse != nullptr, "attention forward: lse must be set");
  if (product == Product::dense)
    require_aligned(kOp, "q", params.q, params.q_stride);
  else
    require_aligned(kOp, "q_compressed", params.q_compressed, {});
  require_aligned(kOp, "k", params.k, params.k_stride);
  require_aligned(kOp, "v", params.v, params.v_stride);
  require_aligned(kOp, "out", params.out, params.out_stride);
  ForwardParams checked = params;
  if (product == Product::dense) checked.q_compressed = nullptr;
  const auto status = static_cast<cudaError_t>(launch(checked, stream));
  require(status == cudaSuccess, "attention forward failed to launch: {}", cudaGetErrorString(status));
}

}  // namespace sfa::flash
