// FLOPs, integer operations and cache bytes of attention by formula, under three ways of counting.
//
//   paper     As Table 6 of arXiv 2603.22300 counts (recovered from its 32 cells): all N^2 pairs of a head, causal or
//   not,
//               dense  N^2 (2 Dqk + 2 Dv + Dv/32 + 3 + 1/64)        SFA  N^2 (2 k_q k_k / Dqk + 2 Dv + Dv/32 + 3 +
//               1/64)
//             the products; the output rescaled once a tile of 64 keys; the softmax; row statistics once a tile.
//   causal    What the mathematics needs: the two products over the visible pairs alone, SFA's over the features that a
//             pair has in common (uniform supports, or a measured mean).
//   executed  What the kernels here do: visible pairs, zeros multiplied where the hardware multiplies them, the softmax
//             and the rescaling of the output, and, apart, the comparisons of the selection.
// A multiply-add counts as two.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "attention/attention.h"

namespace sfa {

enum class Convention : std::uint8_t { paper, executed, causal };
/// "paper" | "executed" | "causal"; throws Error for others.
Convention convention_of(const std::string& name);

/// One attention over `batch` sequences, forward.
struct AttentionCount {
  AttentionConfig config;  // resolved: k_q and k_k set for sfa
  AttentionDims dims;
  double batch = 1;
  Device device = Device::cuda;   // executed: whose kernels
  std::optional<double> overlap;  // features that a visible pair has in common, measured; unset: k_q k_k / Dqk
};

struct AttentionOperations {
  double flops = 0;
  /// paper, sfa: its "INOPs" of Table 6, d N (log2(N k / d) + 64 k / d), of one head. executed, sfa: comparisons of the
  /// selection. Otherwise 0.
  double integer_ops = 0;
};

AttentionOperations count_attention(const AttentionCount& c, std::int64_t N, Convention convention);

/// The widths that a stored key may have besides its values. The paper has an index a value: appendix J says 8-bit
/// indices and 32-bit row pointers, Figure 1(b)'s bars at d = 128 are those of 32-bit indices. Our cache has 8-bit
/// indices, or a bit a feature where that is less (ops/select/support_format.h): index_bytes unset.
struct KeyFormat {
  double value_bytes = 2;
  std::optional<double> index_bytes;
  double pointer_bytes = 0;
};
/// The widths under a convention; `paper`: 8-bit indices.
KeyFormat key_format(Convention convention, double value_bytes);
/// Bytes a token and key/value head: sfa k_k (value + index) + pointer + Dv values, dense (Dqk + Dv) values. In 8 bits
/// (config.kv_cache) rows of keys and values are int8 with a scale.
double kv_bytes(const AttentionConfig& config, const AttentionDims& dims, const KeyFormat& format);
/// The same over those of dense attention with the same widths.
double kv_ratio(const AttentionConfig& config, const AttentionDims& dims, const KeyFormat& format);

}  // namespace sfa
