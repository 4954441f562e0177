// What arXiv 2603.22300 prints for the variants that runs here repeat, for standing beside our figures.
#pragma once

#include <optional>
#include <string>

#include "models/model.h"

namespace sfa {

/// A row of the paper's Table 1: perplexity after pretraining, and means of its zero-shot tasks (%).
struct PaperRow {
  std::string variant;  // as the paper calls it
  double perplexity = 0, piqa = 0, lambada = 0, arc_easy = 0, arc_challenge = 0, hellaswag = 0;
};

struct PaperFigures {
  PaperRow own, dense;  // of the same model size
};

/// The row for a model of the paper's sizes and one of its variants (dense; Q, K and V at half the width; SFA k = 8 or
/// 16, exact top-k, every pair in the softmax), or nothing.
std::optional<PaperFigures> paper_figures(const ModelConfig& model);

/// Milliseconds of Table 9: attention forward of 64 heads over N tokens, full attention, A800, dense without tensor
/// cores. k = 0: dense. Nothing where the table has no such cell.
std::optional<double> paper_latency(std::int64_t d, std::int64_t k, std::int64_t N);

}  // namespace sfa
