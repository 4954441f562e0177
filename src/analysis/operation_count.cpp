#include "analysis/operation_count.h"

#include <algorithm>
#include <cmath>

#include "attention/cost.h"
#include "core/error.h"
#include "ops/select/support_format.h"

namespace sfa {
namespace {

// Keys a tile in the paper's kernel (its Table 6 implies it) and in the CPU kernels; the GPU's are 64 to 128.
constexpr double kTileKeys = 64;

double uniform_overlap(const AttentionCount& c) {
  return static_cast<double>(c.config.k_q) * static_cast<double>(c.config.k_k) / static_cast<double>(c.dims.Dqk);
}

double shared_features(const AttentionCount& c) {
  return c.overlap.value_or(uniform_overlap(c));
}

// Multiply-adds of a score in the kernels that serve the case here.
double executed_per_score(const AttentionCount& c) {
  const AttentionConfig& a = c.config;
  const double Dqk = static_cast<double>(c.dims.Dqk);
  if (a.type == "dense") return Dqk;
  if (a.impl == "posting_list") return shared_features(c);  // the lists of the query's features, tile by tile
  if (a.impl == "reference") return Dqk;
  if (c.device == Device::cpu) return a.k_q;  // rows of a feature-major tile of keys, one a feature of the query
  const bool sparse_cores = a.selection == "topk_2of4" && (a.impl == "flash_sm80" || Dqk == 64 || Dqk == 128);
  return sparse_cores ? Dqk / 2 : Dqk;  // zero-filled rows on tensor cores
}

// Comparisons of a top-k selection a feature (docs/kernels_select.md): networks up to 16, bit by bit above.
double comparisons_per_feature(int k) {
  return k <= 8 ? 8 : k <= 16 ? 11 : 15;
}

// Largest, scaled difference (a multiply-add), exponential and sum of every score.
constexpr double kSoftmaxPerScore = 5;

}  // namespace

Convention convention_of(const std::string& name) {
  if (name == "paper") return Convention::paper;
  if (name == "executed") return Convention::executed;
  require(name == "causal", "--convention: '{}' is not known; there are paper, executed and causal", name);
  return Convention::causal;
}

AttentionOperations count_attention(const AttentionCount& c, std::int64_t N, Convention convention) {
  const bool sfa = c.config.type == "sfa";
  const double n = static_cast<double>(N), heads = c.batch * static_cast<double>(c.dims.H),
               Dqk = static_cast<double>(c.dims.Dqk), Dv = static_cast<double>(c.dims.Dv);
  if (convention == Convention::paper) {
    const double window = c.config.window > 0 ? std::min(n, static_cast<double>(c.config.window)) : n;
    const double score = 2 * (sfa ? uniform_overlap(c) : Dqk), rescaling = 2 * Dv / kTileKeys;
    const double density = c.config.k_k / Dqk;
    return {.flops = heads * n * window * (score + 2 * Dv + rescaling + 3 + 1 / kTileKeys),
            .integer_ops = sfa ? Dqk * n * (std::log2(n * density) + kTileKeys * density) : 0.0};
  }
  const double pairs = heads * visible_pairs(N, c.config.window);
  if (convention == Convention::causal) return {.flops = 2 * pairs * ((sfa ? shared_features(c) : Dqk) + Dv)};
  const double rows = n * c.batch;
  return {.flops = pairs * (2 * executed_per_score(c) + 2 * Dv + kSoftmaxPerScore + Dv / kTileKeys) + heads * n * Dv,
          .integer_ops = sfa ? rows * Dqk *
                                   (static_cast<double>(c.dims.H) * comparisons_per_feature(c.config.k_q) +
                                    static_cast<double>(c.dims.G) * comparisons_per_feature(c.config.k_k))
                             : 0.0};
}

KeyFormat key_format(Convention convention, double value_bytes) {
  KeyFormat format{.value_bytes = value_bytes, .index_bytes = {}};
  if (convention == Convention::paper) format.index_bytes = 1;
  return format;
}

double kv_bytes(const AttentionConfig& config, const AttentionDims& dims, const KeyFormat& f) {
  const auto row = [&](std::int64_t features) {
    return config.int8_cache() ? int8_row_bytes(features) : static_cast<double>(features) * f.value_bytes;
  };
  if (config.type != "sfa") return row(dims.Dqk) + row(dims.Dv);
  const double support =
      f.index_bytes ? config.k_k * *f.index_bytes : static_cast<double>(support_format(dims.Dqk, config.k_k).bytes);
  return config.k_k * f.value_bytes + support + f.pointer_bytes + row(dims.Dv);
}

double kv_ratio(const AttentionConfig& config, const AttentionDims& dims, const KeyFormat& f) {
  return kv_bytes(config, dims, f) / (static_cast<double>(dims.Dqk + dims.Dv) * f.value_bytes);
}

}  // namespace sfa
