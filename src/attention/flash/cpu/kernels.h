// What the kernels of one instruction set offer to the drivers (flash_cpu.cpp, backward_cpu.cpp, decode_cpu.cpp): plain
// structs of pointers and strides, and a table of functions. One unit of work is one call; its result depends on its
// arguments alone, never on the thread.
//
// All products run in f32 on tiles of kTileKeys keys and up to kTileQueries queries, packed into a thread's workspace.
// Scores are held in units of log2: queries are packed times scale * log2(e), so that P = 2^(S - lse2) with lse2 = lse
// * log2(e).
#pragma once

#include <cstdint>

#include "ops/select/support_format.h"

namespace sfa::flash_cpu {

/// Rows [batch, token, head] of floats, as a strided view; features have stride 1.
struct Rows {
  float* data = nullptr;
  std::int64_t batch = 0, token = 0, head = 0;  // strides in elements
  [[nodiscard, gnu::always_inline]] float* at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return data + b * batch + t * token + h * head;
  }
};

/// Sparse rows: `active` values and ascending feature numbers a row. Of keys in a cache the numbers may be masks of
/// `mask_bytes` bytes a row.
struct SparseRows {
  const float* values = nullptr;
  const std::uint8_t* indices = nullptr;
  std::int64_t value_batch = 0, value_token = 0, value_head = 0;
  std::int64_t index_batch = 0, index_token = 0, index_head = 0;
  int active = 0, mask_bytes = 0;
  [[nodiscard, gnu::always_inline]] const float* value_at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return values + b * value_batch + t * value_token + h * value_head;
  }
  [[nodiscard, gnu::always_inline]] const std::uint8_t* index_at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return indices + b * index_batch + t * index_token + h * index_head;
  }
  /// The feature numbers of a key, where they lie or, out of a mask, in `room`.
  [[nodiscard, gnu::always_inline]] const std::uint8_t* numbers_at(std::int64_t b, std::int64_t t, std::int64_t h,
                                                                   std::uint8_t (&room)[256]) const {
    if (mask_bytes == 0) return index_at(b, t, h);
    unpack_mask(index_at(b, t, h), mask_bytes, active, room);
    return room;
  }
};

/// Attention of B x H x Tq queries over Tk keys; head h reads key head h / group.
struct Problem {
  std::int64_t B = 0, H = 0, G = 0, Tq = 0, Tk = 0;
  int Dqk = 0, Dv = 0;
  float scale = 1.0f;
  bool sparse = false;      // queries and keys are q_sparse and k_sparse, otherwise q and k
  bool round_bf16 = false;  // outputs are rounded to bf16
  Rows q, k, v, out;
  SparseRows q_sparse, k_sparse;
  float* lse = nullptr;  // [B, H, Tq]
  // Ranges (attention.h)
  bool causal = true;
  std::int64_t query_offset = 0, window = 0;
  const std::int32_t* first_key = nullptr;  // [B, Tq] with row stride first_key_stride, or null
  std::int64_t first_key_stride = 0;
  // Backward alone
  Rows d_out, d_q, d_k, d_v;

  [[nodiscard, gnu::always_inline]] std::int64_t group() const { return H / G; }
};

/// One tile of queries of one head, forward.
struct ForwardUnit {
  std::int64_t b, h, first_query;
  int queries;
};

/// The keys of one key head whose tile number is `part` modulo `parts`, backward: writes their d_k and d_v, and adds to
/// d_q, which holds partial sums of this part: Tq rows of query heads g * group ... (g + 1) * group - 1, laid out as
/// Rows for (b, token, head).
struct BackwardUnit {
  std::int64_t b, g;
  int part, parts;
  Rows d_q;
  const float* delta;  // [B, H, Tq]: sum over features of d_out * out
};

/// Keys [first, last) for all queries of one key head when there are few queries: partial results, joined afterwards.
struct DecodeUnit {
  std::int64_t b, g, first, last;
  float*
      partial;  // [group * Tq] rows of Dv + 2 floats: unnormalised output, highest score, sum (scores in units of log2)
};

struct Kernels {
  const char* name;
  void (*forward)(const Problem&, const ForwardUnit&, float* workspace);
  void (*backward)(const Problem&, const BackwardUnit&, float* workspace);
  void (*decode)(const Problem&, const DecodeUnit&, float* workspace);
  /// Floats of workspace, aligned to 64 bytes, that a unit of any kind needs when it has at most `queries` queries a
  /// tile.
  std::int64_t (*forward_workspace)(const Problem&, int queries);
  std::int64_t (*backward_workspace)(const Problem&, int queries);
  std::int64_t (*decode_workspace)(const Problem&, int queries);
};

extern const Kernels kAvx2Kernels, kAvx512Kernels;

/// The widest set that this processor can run; SFA_CPU_ISA=avx2 in the environment asks for the baseline (for tests and
/// comparisons).
const Kernels& kernels();

}  // namespace sfa::flash_cpu
