// select_expand. A warp clears whole rows in shared memory, scatters their values there, and writes them in pieces of
// 16 features a lane. Rows that are not made of such pieces take a warp each, which clears the row and scatters its
// values in place.
#include "cuda/launch.h"
#include "ops/select/select_cuda.h"
#include "ops/select/select_rows.cuh"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kWarps = kThreads / 32;
constexpr int kEach = 16;

template <class T>
struct Job {
  RowView<const T> values;
  RowView<const std::uint8_t> indices;
  RowView<T> dense;
  std::uint32_t rows;
  unsigned D, k;
};

// LANES lanes a row.
template <class T, unsigned LANES>
__global__ void __launch_bounds__(kThreads) expand_pieces_kernel(const Job<T> p) {
  constexpr unsigned kRows = 32 / LANES, kD = LANES * kEach;
  using Piece = Vector<T, kEach>;
  __shared__ Piece pieces[kWarps][32];
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::uint32_t first_row = (blockIdx.x * kWarps + warp) * kRows;
  if (first_row >= p.rows) return;
  const unsigned rows = min(kRows, p.rows - first_row);
  pieces[warp][lane] = Piece{};
  __syncwarp();
  T* whole = reinterpret_cast<T*>(pieces[warp]);
  for (unsigned i = lane; i < rows * p.k; i += 32) {
    const unsigned row = i / p.k, n = i - row * p.k;
    whole[row * kD + p.indices.row(first_row + row)[n]] = p.values.row(first_row + row)[n];
  }
  __syncwarp();
  if (lane / LANES < rows)
    *reinterpret_cast<Piece*>(p.dense.row(first_row + lane / LANES) + lane % LANES * kEach) = pieces[warp][lane];
}

template <class T>
__global__ void __launch_bounds__(kThreads) expand_rows_kernel(const Job<T> p) {
  const unsigned lane = threadIdx.x % 32;
  const std::uint32_t row = blockIdx.x * kWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  T* out = p.dense.row(row);
  for (unsigned d = lane; d < p.D; d += 32) out[d] = from_float<T>(0.0f);
  __syncwarp();
  for (unsigned n = lane; n < p.k; n += 32) out[p.indices.row(row)[n]] = p.values.row(row)[n];
}

template <class T>
void launch(CudaState& state, const Job<T>& job, bool pieces) {
  const auto in_pieces = [&]<unsigned LANES>() {
    expand_pieces_kernel<T, LANES><<<blocks_for(job.rows, kThreads / LANES), kThreads, 0, state.stream>>>(job);
  };
  if (pieces && job.D == 32)
    in_pieces.template operator()<2>();
  else if (pieces && job.D == 64)
    in_pieces.template operator()<4>();
  else if (pieces && job.D == 128)
    in_pieces.template operator()<8>();
  else if (pieces && job.D == 256)
    in_pieces.template operator()<16>();
  else
    expand_rows_kernel<T><<<blocks_for(job.rows, kWarps), kThreads, 0, state.stream>>>(job);
}

}  // namespace

void select_expand(Context& ctx, const Tensor& values, const Tensor& indices, const Tensor& dense) {
  const std::int64_t rows = dense.dim(0) * dense.dim(1) * dense.dim(2);
  if (rows == 0) return;
  for_float_type(dense.dtype, "select_expand", [&]<class T>() {
    const Job<T> job{.values = row_view<const T>(values),
                     .indices = row_view<const std::uint8_t>(indices),
                     .dense = row_view<T>(dense),
                     .rows = static_cast<std::uint32_t>(rows),
                     .D = static_cast<unsigned>(dense.dim(3)),
                     .k = static_cast<unsigned>(values.dim(3))};
    launch(ctx.cuda(), job, aligned_rows(dense, kEach));
  });
  SFA_LAUNCH_CHECK();
}

}  // namespace sfa::cuda_ops
