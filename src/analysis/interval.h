// Confidence intervals of the gap between two runs' losses.
#pragma once

#include <cstdint>
#include <vector>

#include "eval/perplexity.h"

namespace sfa {

struct Interval {
  double value = 0, low = 0, high = 0;
};

/// Loss of `other` minus loss of `first`, nats a token, over the same documents in the same order; 95 % by the paired
/// percentile bootstrap over documents (Efron and Tibshirani 1993): documents are drawn with replacement, both runs'
/// sums are taken over the same draw. The numbers are counted ones, so that the interval is the same every time.
Interval bootstrap_gap(const std::vector<DocumentLoss>& first, const std::vector<DocumentLoss>& other,
                       std::int64_t draws = 2000);

/// Mean of paired differences and its 95 % interval by Student's t; n = 1: no width.
Interval paired_gap(const std::vector<double>& differences);

}  // namespace sfa
