// A thread takes a word of a mask: 32 features of a row.
#include "cuda/launch.h"
#include "ops/select/select_rows.cuh"
#include "ops/select/support_mask_cuda.h"

namespace sfa::cuda_ops {
namespace {

constexpr int kThreads = 256;

/// Rows of masks count words, rows of numbers bytes.
struct Job {
  RowView<std::uint8_t> numbers;
  RowView<std::uint32_t> mask;
  std::uint32_t rows;
  unsigned words, k;
};

/// A thread's.
struct Word {
  std::uint32_t row;
  unsigned word;  // of the row
};

__device__ Word word_of(const Job& p) {
  const std::uint64_t i = blockIdx.x * std::uint64_t{kThreads} + threadIdx.x;
  return {static_cast<std::uint32_t>(i / p.words), static_cast<unsigned>(i % p.words)};
}

__global__ void __launch_bounds__(kThreads) pack_kernel(const Job p) {
  const auto [row, word] = word_of(p);
  if (row >= p.rows) return;
  const std::uint8_t* numbers = p.numbers.row(row);
  std::uint32_t bits = 0;
  for (unsigned n = 0; n < p.k; ++n)
    if (numbers[n] / 32 == word) bits |= 1u << (numbers[n] % 32);
  p.mask.row(row)[word] = bits;
}

__global__ void __launch_bounds__(kThreads) unpack_kernel(const Job p) {
  const auto [row, word] = word_of(p);
  if (row >= p.rows) return;
  const std::uint32_t* mask = p.mask.row(row);
  std::uint8_t* numbers = p.numbers.row(row);
  unsigned n = 0;
  for (unsigned before = 0; before < word; ++before) n += __popc(mask[before]);
  for (std::uint32_t bits = mask[word]; bits != 0 && n < p.k; bits &= bits - 1)
    numbers[n++] = static_cast<std::uint8_t>(32 * word + __ffs(static_cast<int>(bits)) - 1);
  if (word + 1 == p.words)
    while (n < p.k) numbers[n++] = 0;
}

RowView<std::uint32_t> in_words(const Tensor& mask) {
  RowView<std::uint32_t> view = row_view<std::uint32_t>(mask);
  view.stride_b /= 4;
  view.stride_t /= 4;
  view.stride_h /= 4;
  return view;
}

void launch(Context& ctx, void (*kernel)(Job), const Tensor& numbers, const Tensor& mask) {
  const std::int64_t rows = mask.dim(0) * mask.dim(1) * mask.dim(2), words = mask.dim(3) / 4;
  const Job job{.numbers = row_view<std::uint8_t>(numbers),
                .mask = in_words(mask),
                .rows = static_cast<std::uint32_t>(rows),
                .words = static_cast<unsigned>(words),
                .k = static_cast<unsigned>(numbers.dim(3))};
  kernel<<<blocks_for(rows * words, kThreads), kThreads, 0, ctx.cuda().stream>>>(job);
  SFA_LAUNCH_CHECK();
}

}  // namespace

void mask_pack(Context& ctx, const Tensor& numbers, const Tensor& mask) {
  launch(ctx, pack_kernel, numbers, mask);
}

void mask_unpack(Context& ctx, const Tensor& mask, const Tensor& numbers) {
  launch(ctx, unpack_kernel, numbers, mask);
}

}  // namespace sfa::cuda_ops
