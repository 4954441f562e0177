#include "attention/flash/decode_cache.h"

#include "cuda/launch.h"
#include "cuda/vector.cuh"
#include "ops/select/select_rows.cuh"

namespace sfa::flash {
namespace {

using cuda_ops::row_view;
using cuda_ops::RowView;

constexpr int kThreads = 256;

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

}  // namespace sfa::flash
