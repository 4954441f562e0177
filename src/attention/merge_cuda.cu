// Joins two partial attentions by their log-sum-exp. One warp a row:
//   lse' = log(exp(lse) + exp(other));  out' = exp(lse - lse') out + exp(other - lse') other_out
#include <cmath>

#include "attention/reference_cuda.h"
#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct Strides {
  std::int64_t b, t, h;
  explicit Strides(const Tensor& x) : b(x.stride[0]), t(x.stride[1]), h(x.stride[2]) {}
  [[nodiscard]] __device__ std::int64_t at(std::int64_t i, std::int64_t j, std::int64_t k) const {
    return i * b + j * t + k * h;
  }
};

struct Shape {
  std::int64_t B, steps, H, D;
  Strides out, other_out;
  std::int64_t lse_b, lse_h, other_b, other_h;
};

template <class T, class Other>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const Shape s, T* out, float* lse, const Other* __restrict__ other_out,
                 const float* __restrict__ other_lse) {
  const std::int64_t row = blockIdx.x * std::int64_t{kWarps} + threadIdx.x / 32;
  if (row >= s.B * s.steps * s.H) return;
  const std::int64_t h = row % s.H, t = row / s.H % s.steps, b = row / s.H / s.steps;
  float* own_lse = lse + b * s.lse_b + h * s.lse_h + t;
  const float mine = *own_lse, other = other_lse[b * s.other_b + h * s.other_h + t];
  const float top = fmaxf(mine, other);
  const float joined = top == -INFINITY ? -INFINITY : top + logf(expf(mine - top) + expf(other - top));
  const float keep = mine == -INFINITY ? 0.0f : expf(mine - joined),
              add = other == -INFINITY ? 0.0f : expf(other - joined);
  T* to = out + s.out.at(b, t, h);
  const Other* from = other_out + s.other_out.at(b, t, h);
  for (std::int64_t c = threadIdx.x % 32; c < s.D; c += 32)
    to[c] = from_float<T>(keep * to_float(to[c]) + add * to_float(from[c]));
  __syncwarp();  // every lane has read the old log-sum-exp
  if (threadIdx.x % 32 == 0) *own_lse = joined;
}

}  // namespace

void attention_merge(Context& ctx, const Tensor& out, const Tensor& lse, const Tensor& other_out,
                     const Tensor& other_lse) {
  const Shape s{.B = out.dim(0),
                .steps = out.dim(1),
                .H = out.dim(2),
                .D = out.dim(3),
                .out = Strides(out),
                .other_out = Strides(other_out),
                .lse_b = lse.stride[0],
                .lse_h = lse.stride[1],
                .other_b = other_lse.stride[0],
                .other_h = other_lse.stride[1]};
  const std::int64_t rows = s.B * s.steps * s.H;
  if (rows == 0) return;
  const auto launch = [&]<class T, class Other>() {
    merge_kernel<T, Other><<<blocks_for(rows, kWarps), kThreads, 0, ctx.cuda().stream>>>(
        s, data_of<T>(out), data_of<float>(lse), data_of<const Other>(other_out), data_of<const float>(other_lse));
  };
  for_float_type(other_out.dtype, "attention_merge", [&]<class Other>() {
    if (out.dtype == DType::f32)
      launch.template operator()<float, Other>();
    else
      launch.template operator()<Other, Other>();
  });
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::cuda_ops
