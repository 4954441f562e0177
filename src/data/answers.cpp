#include "data/answers.h"

#include <algorithm>

#include "core/error.h"
#include "data/loader.h"

namespace sfa {

AnswerRanges::AnswerRanges(std::vector<std::int64_t> bounds) : bounds_(std::move(bounds)), answers_{0} {
  for (std::size_t i = 0; i + 1 < bounds_.size(); i += 2)
    answers_.push_back(answers_.back() + bounds_[i + 1] - bounds_[i]);
}

// Behind an odd number of bounds a range is open.
std::int64_t AnswerRanges::before(std::int64_t position) const {
  const auto passed =
      static_cast<std::size_t>(std::upper_bound(bounds_.begin(), bounds_.end(), position) - bounds_.begin());
  return answers_[passed / 2] + (passed % 2 == 1 ? position - bounds_[passed - 1] : 0);
}

void AnswerRanges::mask(std::int64_t begin, std::span<std::int32_t> targets) const {
  auto next = std::upper_bound(bounds_.begin(), bounds_.end(), begin);
  for (std::int64_t position = begin; std::int32_t & target : targets) {
    while (next != bounds_.end() && *next <= position) ++next;
    if ((next - bounds_.begin()) % 2 == 0) target = -1;
    ++position;
  }
}

std::vector<AnswerRanges> all_answers(const ShardSet& shards) {
  std::vector<AnswerRanges> all;
  for (const auto& file : shards.files()) {
    require(file->info().has_answers,
            "train.loss_mask: {} does not say which tokens are answers; make it from records with `sfa data tokenize "
            "--field prompt --answer-field completion`",
            file->info().path);
    all.emplace_back(file->answers());
  }
  return all;
}

void require_answers(std::int64_t count, const ShardSet& shards, Split split) {
  require(count > 0, "train.loss_mask: the {} split of {} holds no answer to predict", name_of(split),
          shards.describe());
}

}  // namespace sfa
