// Joins two partial attentions by their log-sum-exp:
//   lse' = log(exp(lse) + exp(other));  out' = exp(lse - lse') out + exp(other - lse') other_out
// Memory binds: a row is shared by as many lanes as it has vectors of four, and every lane has a read of each side
// under way before it needs the log-sum-exp.
#include <cmath>

#include "attention/reference_cuda.h"
#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;

struct Strides {
  std::int64_t b, t, h;
  explicit Strides(const Tensor& x) : b(x.stride[0]), t(x.stride[1]), h(x.stride[2]) {}
  [[nodiscard]] __device__ std::int64_t at(std::int64_t i, std::int64_t j, std::int64_t k) const {
    return i * b + j * t + k * h;
  }
};

struct Shape {
  unsigned rows, steps, H;
  std::int64_t D;
  Strides out, other_out;
  std::int64_t lse_b, lse_h, other_b, other_h;
};

// 2^lanes_log2 <= 32 lanes a row, VEC columns a lane and step.
template <class T, class Other, int VEC>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const Shape s, int lanes_log2, T* out, float* lse, const Other* __restrict__ other_out,
                 const float* __restrict__ other_lse) {
  const unsigned row = blockIdx.x * (kThreads >> lanes_log2) + (threadIdx.x >> lanes_log2);
  if (row >= s.rows) return;
  const int lanes = 1 << lanes_log2, lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const unsigned h = row % s.H, t = row / s.H % s.steps, b = row / s.H / s.steps;
  T* to = out + s.out.at(b, t, h);
  const Other* from = other_out + s.other_out.at(b, t, h);
  float x[VEC] = {}, y[VEC] = {};
  std::int64_t c = lane * VEC;
  const auto fetch = [&] {
    if (c >= s.D) return;
    load(x, to + c);
    load(y, from + c);
  };
  fetch();
  float* own_lse = lse + b * s.lse_b + h * s.lse_h + t;
  const float mine = *own_lse, other = other_lse[b * s.other_b + h * s.other_h + t];
  const float top = fmaxf(mine, other);
  const float joined = top == -INFINITY ? -INFINITY : top + logf(expf(mine - top) + expf(other - top));
  const float keep = mine == -INFINITY ? 0.0f : expf(mine - joined),
              add = other == -INFINITY ? 0.0f : expf(other - joined);
  while (c < s.D) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) x[i] = keep * x[i] + add * y[i];
    store(to + c, x);
    c += lanes * VEC;
    fetch();
  }
  __syncwarp();  // every lane has read the old log-sum-exp
  if (lane == 0) *own_lse = joined;
}

// Whether every row of x begins where a vector of four may be read.
bool in_vectors(const Tensor& x) {
  const auto fits = [](std::int64_t n) { return n % 4 == 0; };
  return fits(x.dim(3)) && fits(x.stride[0]) && fits(x.stride[1]) && fits(x.stride[2]) &&
         reinterpret_cast<std::uintptr_t>(x.data) % (4 * size_of(x.dtype)) == 0;
}

}  // namespace

void attention_merge(Context& ctx, const Tensor& out, const Tensor& lse, const Tensor& other_out,
                     const Tensor& other_lse) {
  const std::int64_t rows = out.dim(0) * out.dim(1) * out.dim(2);
  if (rows == 0) return;
  require(rows <= 0x7fffffff, "internal error: attention_merge of {} rows", rows);
  const Shape s{.rows = static_cast<unsigned>(rows),
                .steps = static_cast<unsigned>(out.dim(1)),
                .H = static_cast<unsigned>(out.dim(2)),
                .D = out.dim(3),
                .out = Strides(out),
                .other_out = Strides(other_out),
                .lse_b = lse.stride[0],
                .lse_h = lse.stride[1],
                .other_b = other_lse.stride[0],
                .other_h = other_lse.stride[1]};
  const bool vectors = in_vectors(out) && in_vectors(other_out);
  int lanes_log2 = 0;
  while (lanes_log2 < 5 && (vectors ? 4 : 1) << lanes_log2 < s.D) ++lanes_log2;
  const auto launch = [&]<class T, class Other>() {
    const auto kernel = vectors ? merge_kernel<T, Other, 4> : merge_kernel<T, Other, 1>;
    kernel<<<blocks_for(rows, kThreads >> lanes_log2), kThreads, 0, ctx.cuda().stream>>>(
        s, lanes_log2, data_of<T>(out), data_of<float>(lse), data_of<const Other>(other_out),
        data_of<const float>(other_lse));
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
