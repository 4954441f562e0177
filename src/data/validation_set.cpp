// ValidationSet of loader.h: the whole validation split in windows that do not overlap.
#include <algorithm>

#include "core/error.h"
#include "data/loader.h"
#include "data/window.h"

namespace sfa {

Split validation_split_of_own_files(const ShardSet& shards) {
  return shards.tokens(Split::val) > 0 ? Split::val : Split::all;
}

ValidationSet::ValidationSet(const ValidationOptions& options) : options_(options), shards_(options.paths), first_{0} {
  const ValidationOptions& o = options_;
  require(o.seq_len >= 1 && o.batch_size >= 1, "the sequence length ({}) and the batch size ({}) must be at least 1",
          o.seq_len, o.batch_size);
  const bool some_tail = shards_.tokens(Split::val) > 0;
  if (o.answers) answers_ = all_answers(shards_);
  for (const auto& file : shards_.files()) {
    // A row of files may end in one that is too short for a tail; without any tail range() says what to do.
    const bool skip = o.split == Split::val && some_tail && file->info().val_start == file->info().total_tokens;
    const auto [begin, end] = skip ? std::pair<std::int64_t, std::int64_t>{0, 0} : file->range(o.split);
    const std::int64_t targets = std::max<std::int64_t>(0, end - begin - 1);
    begin_.push_back(begin);
    tokens_.push_back(end - begin);
    total_targets_ += o.answers ? answers_[begin_.size() - 1].count(begin + 1, begin + 1 + targets) : targets;
    first_.push_back(first_.back() + (targets + o.seq_len - 1) / o.seq_len);
  }
  if (o.answers && first_.back() > 0) require_answers(total_targets_, shards_, o.split);
  require(total_targets_ > 0, "{}: the {} split has {} token(s), too few to predict one from another",
          shards_.describe(), name_of(o.split), shards_.tokens(o.split));
  if (o.document_mask) document_starts_ = all_document_starts(shards_);
  const TokenFile& any = *shards_.files().front();
  const TokenFile::Vocabulary vocabulary = any.vocabulary();
  for (std::int64_t id = 0; !vocabulary.empty() && id < any.info().vocab_size; ++id)
    bytes_of_.push_back(id == any.info().end_of_text ? 0 : static_cast<std::uint32_t>(vocabulary[id].size()));
}

std::int64_t ValidationSet::num_batches() const {
  const std::int64_t per_batch = std::int64_t{options_.batch_size} * options_.world_size;
  return (first_.back() + per_batch - 1) / per_batch;
}

const Batch& ValidationSet::batch(std::int64_t i) {
  const ValidationOptions& o = options_;
  require(i >= 0 && i < num_batches(), "internal error: validation batch {} of {}", i, num_batches());
  resize_batch(batch_, o.batch_size, o.seq_len, o.document_mask);
  batch_.first_sample = (i * o.world_size + o.rank) * o.batch_size;
  batch_.num_targets = batch_.target_bytes = 0;
  for (int row = 0; row < o.batch_size; ++row) {
    const std::int64_t window = batch_.first_sample + row;
    if (window >= first_.back()) {  // a row that only fills the batch
      fill_row(batch_, row, *shards_.files().front(), 0, 0, o.document_mask ? &document_starts_.front() : nullptr);
      continue;
    }
    const auto file =
        static_cast<std::size_t>(std::upper_bound(first_.begin(), first_.end(), window) - first_.begin() - 1);
    const std::int64_t at = (window - first_[file]) * o.seq_len;
    const auto targets = static_cast<int>(std::min<std::int64_t>(o.seq_len, tokens_[file] - 1 - at));
    fill_row(batch_, row, *shards_.files()[file], begin_[file] + at, targets,
             o.document_mask ? &document_starts_[file] : nullptr, o.answers ? &answers_[file] : nullptr);
    const std::int64_t first = begin_[file] + at + 1;
    batch_.num_targets += o.answers ? answers_[file].count(first, first + targets) : targets;
  }
  Batch& mine = o.part.parts == 1 ? batch_ : part_;
  if (o.part.parts > 1) take_part(batch_, o.part, part_);
  if (!bytes_of_.empty())
    for (const std::int32_t target : mine.targets)
      if (target >= 0) mine.target_bytes += bytes_of_[static_cast<std::size_t>(target)];
  return mine;
}

}  // namespace sfa
