// The ranks that share a sequence (context parallelism), as attention and models see them.
//
// A sequence of T tokens is cut into 2N chunks of c = T / 2N tokens for N ranks; rank r holds chunks r and 2N-1-r. So
// every rank has as many pairs of a causal query and key as every other (as in Llama 3, arXiv 2407.21783). A
// batch of B sequences lies on a rank as [2B, c] rows: chunk r of every sequence, then chunk 2N-1-r of every sequence.
// To all but attention and positions these are 2B short sequences.
#pragma once

#include <array>
#include <cstdint>

#include "core/context.h"
#include "core/tensor.h"

namespace sfa {

class KeyRing {
 public:
  KeyRing(int rank, int size) : rank_(rank), size_(size) {}
  virtual ~KeyRing() = default;
  KeyRing(const KeyRing&) = delete;
  KeyRing& operator=(const KeyRing&) = delete;

  /// Place in the ring, and ranks in it.
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return size_; }
  /// The chunk of the sequence that `rank` holds in the first half of its rows (0) or in the second (1).
  [[nodiscard]] int chunk(int rank, int half) const { return half == 0 ? rank : 2 * size_ - 1 - rank; }

  /// Sends `out` to the next rank of the ring while `in` arrives from the one before; both contiguous. Queued behind
  /// the context's work so far. Every rank makes the same calls in the same order.
  virtual void pass(Context& ctx, const Tensor& out, const Tensor& in) = 0;
  /// Work queued on the context from now on sees what was passed so far.
  virtual void arrived(Context& ctx) = 0;

 private:
  int rank_, size_;
};

/// Rows [begin, begin + count) of a batch, whose tokens have positions first_position, first_position + 1, ...
struct RowRun {
  std::int64_t begin = 0, count = 0, first_position = 0;
  /// These rows of a tensor whose first axis counts `each` entries a row.
  [[nodiscard]] Tensor of(const Tensor& t, std::int64_t each = 1) const {
    return t.empty() ? Tensor{} : t.slice(0, begin * each, count * each);
  }
};

/// The runs of a batch [rows, T]: all rows from position 0 on, or on a ring two halves.
class RowRuns {
 public:
  RowRuns(const KeyRing* ring, std::int64_t rows, std::int64_t T) {
    runs_[0].count = rows;
    if (ring == nullptr) return;
    count_ = 2;
    for (int half = 0; half < 2; ++half)
      runs_[static_cast<std::size_t>(half)] = {half * (rows / 2), rows / 2, ring->chunk(ring->rank(), half) * T};
  }
  [[nodiscard]] const RowRun* begin() const { return runs_.data(); }
  [[nodiscard]] const RowRun* end() const { return runs_.data() + count_; }

 private:
  std::array<RowRun, 2> runs_{};
  int count_ = 1;
};

}  // namespace sfa
