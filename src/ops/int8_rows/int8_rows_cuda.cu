// A warp takes a row, lane by lane in turn.
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ops/int8_rows/int8_rows_cuda.h"
#include "ops/select/select_rows.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kWarps = kThreads / 32;
constexpr int kEach = 8;  // features a lane at the most

/// A lane's features of one row, and the row's scale.
struct QuantizedRow {
  float x[kEach];
  bf16 scale;
  float inverse;

  template <class T>
  __device__ __forceinline__ QuantizedRow(const T* row, int features) {
    float most = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int c = threadIdx.x % 32 + 32 * i;
      x[i] = c < features ? to_float(row[c]) : 0.0f;
      most = fmaxf(most, fabsf(x[i]));
    }
    most = warp_reduce(most, Max{});
    const bool zero = most < kInt8Smallest;
    scale = __float2bfloat16_ru(zero ? 0.0f : most / 127.0f);
    inverse = zero ? 0.0f : 1.0f / to_float(scale);
  }
  [[nodiscard]] __device__ __forceinline__ int stored(int i) const {
    return max(-127, min(127, __float2int_rn(x[i] * inverse)));
  }
};

__global__ void __launch_bounds__(kThreads) append_kernel(RowView<const bf16> x, RowView<std::uint8_t> values,
                                                          RowView<bf16> scales, std::uint32_t rows, int features) {
  const std::uint32_t row = blockIdx.x * kWarps + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = threadIdx.x % 32;
  const QuantizedRow q(x.row(row), features);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (lane + 32 * i < features) values.row(row)[lane + 32 * i] = static_cast<std::uint8_t>(q.stored(i));
  if (lane == 0) *scales.row(row) = q.scale;
}

template <class T>
__global__ void __launch_bounds__(kThreads) round_kernel(RowView<T> x, std::uint32_t rows, int features) {
  const std::uint32_t row = blockIdx.x * kWarps + threadIdx.x / 32;
  if (row >= rows) return;
  const QuantizedRow q(x.row(row), features);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int c = threadIdx.x % 32 + 32 * i;
    if (c < features) x.row(row)[c] = from_float<T>(to_float(q.scale) * static_cast<float>(q.stored(i)));
  }
}

__global__ void __launch_bounds__(kThreads)
    expand_kernel(RowView<const std::uint8_t> values, RowView<const bf16> scales, RowView<bf16> x, std::uint32_t rows,
                  int features) {
  const std::uint32_t row = blockIdx.x * kWarps + threadIdx.x / 32;
  if (row >= rows) return;
  const float scale = to_float(*scales.row(row));
  for (int c = threadIdx.x % 32; c < features; c += 32)
    x.row(row)[c] = from_float<bf16>(scale * static_cast<float>(static_cast<std::int8_t>(values.row(row)[c])));
}

/// [B, T, G] as rows of one element.
Tensor of_width_one(const Tensor& t) {
  Tensor row = t;
  row.rank = 4;
  row.shape[3] = row.stride[3] = 1;
  return row;
}

std::uint32_t rows_of(const Tensor& x) {
  return static_cast<std::uint32_t>(x.dim(0) * x.dim(1) * x.dim(2));
}

}  // namespace

void int8_round(Context& ctx, const Tensor& x) {
  const std::uint32_t rows = rows_of(x);
  const auto launch = [&]<class T>(T) {
    round_kernel<T><<<blocks_for(rows, kWarps), kThreads, 0, ctx.cuda().stream>>>(row_view<T>(x), rows,
                                                                                  static_cast<int>(x.dim(3)));
  };
  if (x.dtype == DType::bf16)
    launch(bf16{});
  else
    launch(float{});
  SFA_LAUNCH_CHECK();
}

void int8_append(Context& ctx, const Tensor& x, const Int8Rows& to, std::int64_t at) {
  const std::uint32_t rows = rows_of(x);
  append_kernel<<<blocks_for(rows, kWarps), kThreads, 0, ctx.cuda().stream>>>(
      row_view<const bf16>(x), row_view<std::uint8_t>(to.values.slice(1, at, x.dim(1))),
      row_view<bf16>(of_width_one(to.scales.slice(1, at, x.dim(1)))), rows, static_cast<int>(x.dim(3)));
  SFA_LAUNCH_CHECK();
}

void int8_expand(Context& ctx, const Int8Rows& from, const Tensor& x) {
  const std::uint32_t rows = rows_of(x);
  expand_kernel<<<blocks_for(rows, kWarps), kThreads, 0, ctx.cuda().stream>>>(
      row_view<const std::uint8_t>(from.values), row_view<const bf16>(of_width_one(from.scales)), row_view<bf16>(x),
      rows, static_cast<int>(x.dim(3)));
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::cuda_ops
