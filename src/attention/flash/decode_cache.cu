#include "attention/flash/decode_cache.h"

#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ops/select/select_rows.cuh"

namespace sfa::flash {
namespace {

using cuda_ops::row_view;
using cuda_ops::RowView;

constexpr int kThreads = 256;
constexpr unsigned kWarps = kThreads / 32;

/// Rows in pieces of T; strides count pieces.
template <class T>
__global__ void __launch_bounds__(kThreads)
    append_kernel(RowView<const T> from, RowView<T> to, std::uint32_t rows, std::uint32_t pieces) {
  const std::uint64_t i = blockIdx.x * std::uint64_t{kThreads} + threadIdx.x;
  const std::uint32_t row = static_cast<std::uint32_t>(i / pieces), piece = static_cast<std::uint32_t>(i % pieces);
  if (row < rows) to.row(row)[piece] = from.row(row)[piece];
}

template <class T>
RowView<T> in_pieces(const Tensor& t) {
  const auto pieces = [&](std::int64_t elements) {
    return elements * static_cast<std::int64_t>(size_of(t.dtype)) / static_cast<std::int64_t>(sizeof(T));
  };
  RowView<T> view = row_view<T>(t);
  view.stride_b = pieces(view.stride_b);
  view.stride_t = pieces(view.stride_t);
  view.stride_h = pieces(view.stride_h);
  return view;
}

/// Whether rows, their starts and their distances are whole pieces of `bytes`.
bool whole(const Tensor& t, std::uintptr_t bytes) {
  const auto size = static_cast<std::uintptr_t>(size_of(t.dtype));
  std::uintptr_t bits = reinterpret_cast<std::uintptr_t>(t.data) | static_cast<std::uintptr_t>(t.dim(3)) * size;
  for (std::size_t i = 0; i < 3; ++i) bits |= static_cast<std::uintptr_t>(t.stride[i]) * size;
  return bits % bytes == 0;
}

template <class T>
void launch_append(cudaStream_t stream, const Tensor& from, const Tensor& to) {
  const std::int64_t rows = from.dim(0) * from.dim(1) * from.dim(2);
  const std::int64_t pieces =
      from.dim(3) * static_cast<std::int64_t>(size_of(from.dtype)) / static_cast<std::int64_t>(sizeof(T));
  append_kernel<T><<<blocks_for(rows * pieces, kThreads), kThreads, 0, stream>>>(
      in_pieces<const T>(from), in_pieces<T>(to), static_cast<std::uint32_t>(rows), static_cast<std::uint32_t>(pieces));
}

/// A warp a row of at most 256 features, lane by lane in turn.
__global__ void __launch_bounds__(kThreads) append_int8_kernel(RowView<const bf16> v, RowView<std::uint8_t> values,
                                                               RowView<bf16> scales, std::uint32_t rows, int features) {
  const std::uint32_t row = blockIdx.x * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= rows) return;
  float x[8], most = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int c = lane + 32 * i;
    x[i] = c < features ? to_float(v.row(row)[c]) : 0.0f;
    most = fmaxf(most, fabsf(x[i]));
  }
  most = warp_reduce(most, Max{});
  const bf16 scale = __float2bfloat16_ru(most / 127.0f);
  const float inverse = most > 0 ? 1.0f / to_float(scale) : 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int c = lane + 32 * i;
    const int stored = max(-127, min(127, __float2int_rn(x[i] * inverse)));
    if (c < features) values.row(row)[c] = static_cast<std::uint8_t>(stored);
  }
  if (lane == 0) *scales.row(row) = scale;
}

__global__ void __launch_bounds__(kThreads)
    expand_int8_kernel(RowView<const std::uint8_t> values, RowView<const bf16> scales, RowView<bf16> v,
                       std::uint32_t rows, int features) {
  const std::uint32_t row = blockIdx.x * kWarps + threadIdx.x / 32;
  if (row >= rows) return;
  const float scale = to_float(*scales.row(row));
  for (int c = threadIdx.x % 32; c < features; c += 32)
    v.row(row)[c] = from_float<bf16>(scale * static_cast<float>(static_cast<std::int8_t>(values.row(row)[c])));
}

/// [B, T, G] as rows of one element.
Tensor of_width_one(const Tensor& t) {
  Tensor row = t;
  row.rank = 4;
  row.shape[3] = row.stride[3] = 1;
  return row;
}

}  // namespace

void append_rows(Context& ctx, const Tensor& from, const Tensor& cache, std::int64_t at) {
  if (ctx.planning || from.numel() == 0) return;
  const Tensor to = cache.slice(1, at, from.dim(1));
  require(from.dtype == to.dtype && from.dim(0) == to.dim(0) && from.dim(2) == to.dim(2) && from.dim(3) == to.dim(3),
          "internal error: {} appended to the cache {}", from, cache);
  const auto both = [&](std::uintptr_t bytes) { return whole(from, bytes) && whole(to, bytes); };
  const cudaStream_t stream = ctx.cuda().stream;
  if (both(16))
    launch_append<uint4>(stream, from, to);
  else if (both(8))
    launch_append<uint2>(stream, from, to);
  else if (both(4))
    launch_append<std::uint32_t>(stream, from, to);
  else if (both(2))
    launch_append<std::uint16_t>(stream, from, to);
  else
    launch_append<std::uint8_t>(stream, from, to);
  SFA_LAUNCH_CHECK();
}

void append_int8(Context& ctx, const Tensor& v, const Tensor& values, const Tensor& scales, std::int64_t at) {
  if (ctx.planning || v.numel() == 0) return;
  const std::int64_t rows = v.dim(0) * v.dim(1) * v.dim(2);
  append_int8_kernel<<<blocks_for(rows, kWarps), kThreads, 0, ctx.cuda().stream>>>(
      row_view<const bf16>(v), row_view<std::uint8_t>(values.slice(1, at, v.dim(1))),
      row_view<bf16>(of_width_one(scales.slice(1, at, v.dim(1)))), static_cast<std::uint32_t>(rows),
      static_cast<int>(v.dim(3)));
  SFA_LAUNCH_CHECK();
}

void expand_int8(Context& ctx, const Tensor& values, const Tensor& scales, const Tensor& v) {
  if (ctx.planning || v.numel() == 0) return;
  const std::int64_t rows = v.dim(0) * v.dim(1) * v.dim(2);
  expand_int8_kernel<<<blocks_for(rows, kWarps), kThreads, 0, ctx.cuda().stream>>>(
      row_view<const std::uint8_t>(values), row_view<const bf16>(of_width_one(scales)), row_view<bf16>(v),
      static_cast<std::uint32_t>(rows), static_cast<int>(v.dim(3)));
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::flash
