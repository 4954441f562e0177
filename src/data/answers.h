// Which tokens of a token file are answers (train.loss_mask): ranges of positions, counted and applied to windows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/token_file.h"

namespace sfa {

class ShardSet;

class AnswerRanges {
 public:
  /// `bounds`: first position and one past the last of each range, ascending (TokenFile::answers).
  explicit AnswerRanges(std::vector<std::int64_t> bounds);

  /// Answers among positions [begin, end).
  [[nodiscard]] std::int64_t count(std::int64_t begin, std::int64_t end) const { return before(end) - before(begin); }
  /// targets[i] stands at position begin + i; what is no answer there becomes -1.
  void mask(std::int64_t begin, std::span<std::int32_t> targets) const;

 private:
  [[nodiscard]] std::int64_t before(std::int64_t position) const;

  std::vector<std::int64_t> bounds_;
  std::vector<std::int64_t> answers_;  // before each range, and in all
};

/// Of every file. Throws Error for a file that does not say which tokens are answers.
std::vector<AnswerRanges> all_answers(const ShardSet& shards);
/// Throws Error when a split has `count` = 0 answers: nothing could be learnt or measured.
void require_answers(std::int64_t count, const ShardSet& shards, Split split);

}  // namespace sfa
