// Checks and dispatch in front of the forward kernels.
#include "attention/flash/flash_forward.h"

#include <cuda_runtime.h>

#include "attention/flash/forward_instances.h"
#include "core/error.h"

namespace sfa::flash {
namespace {

using Launcher = int (*)(const ForwardParams&, void*);

/// Up to this many query rows the 128-row tile loses less at the diagonal than the 192-row tile gains beyond it.
constexpr int kShortRows = 2048;
/// From this many keys on warpgroups at d = 128 do better without turns (forward_tuning.h).
constexpr int kLongDense = 8192;
constexpr int kLongSparse = 16384;

Launcher dense_launcher(const Shape& shape) {
  const auto fits = [&](int Dqk, int Dv) { return shape.Dqk <= Dqk && shape.Dv <= Dv; };
  if (shape.Dqk < 16 || shape.Dv < 16 || shape.Dqk % 16 != 0 || shape.Dv % 16 != 0) return nullptr;
  if (fits(32, 32)) return forward_dense_d32;
  if (fits(32, 64)) return forward_dense_d32_v64;
  if (fits(64, 64)) return shape.Tq <= kShortRows ? forward_dense_d64_short : forward_dense_d64;
  if (fits(64, 128)) return forward_dense_d64_v128;
  if (fits(128, 64)) return forward_dense_d128_v64;
  if (fits(96, 96)) return forward_dense_d96;
  if (fits(128, 128)) return shape.Tk < kLongDense ? forward_dense_d128 : forward_dense_d128_long;
  return nullptr;
}

Launcher sparse24_launcher(const Shape& shape) {
  if (shape.Dqk == 64 && shape.Dv == 64) return forward_sparse24_d64;
  if (shape.Dqk == 128 && shape.Dv == 128)
    return shape.Tk < kLongSparse ? forward_sparse24_d128 : forward_sparse24_d128_long;
  if (shape.Dqk == 128 && shape.Dv == 64) return forward_sparse24_d128_v64;
  return nullptr;
}

Launcher launcher_for(const Shape& shape, Product product) {
  return product == Product::dense ? dense_launcher(shape) : sparse24_launcher(shape);
}

void require_aligned(const char* name, const void* data, const Strides& stride) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride.batch % 8 == 0 &&
                       stride.token % 8 == 0 && stride.head % 8 == 0;
  require(data != nullptr && aligned,
          "attention forward: {} must be set, 16-byte aligned and have strides that are multiples of 8 elements "
          "(batch {}, token {}, head {})",
          name, stride.batch, stride.token, stride.head);
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
  require(s.G > 0 && s.H % s.G == 0, "attention forward: {} query heads cannot share {} key/value heads evenly", s.H,
          s.G);
  require(s.B >= 1 && s.Tq >= 1 && s.Tk >= 1, "attention forward: empty shape B={} Tq={} Tk={}", s.B, s.Tq, s.Tk);
  require(params.scale > 0, "attention forward: the scale must be positive, not {}", params.scale);
  require(params.lse != nullptr, "attention forward: lse must be set");
  if (product == Product::dense)
    require_aligned("q", params.q, params.q_stride);
  else
    require_aligned("q_compressed", params.q_compressed, {});
  require_aligned("k", params.k, params.k_stride);
  require_aligned("v", params.v, params.v_stride);
  require_aligned("out", params.out, params.out_stride);
  ForwardParams checked = params;
  if (product == Product::dense) checked.q_compressed = nullptr;
  const auto status = static_cast<cudaError_t>(launch(checked, stream));
  require(status == cudaSuccess, "attention forward failed to launch: {}", cudaGetErrorString(status));
}

}  // namespace sfa::flash
