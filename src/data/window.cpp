#include "data/window.h"

#include <algorithm>

#include "core/error.h"

namespace sfa {

void resize_batch(Batch& batch, int rows, int seq_len, bool with_keys) {
  const auto size = static_cast<std::size_t>(rows) * static_cast<std::size_t>(seq_len);
  batch.B = rows;
  batch.T = seq_len;
  batch.tokens.resize(size);
  batch.targets.resize(size);
  batch.first_key.resize(with_keys ? size : 0);
}

void fill_row(Batch& batch, int row, const TokenFile& file, std::int64_t begin, int targets,
              const std::vector<std::int64_t>* starts, const AnswerRanges* answers) {
  const auto T = static_cast<std::size_t>(batch.T), used = static_cast<std::size_t>(targets);
  std::int32_t* tokens = batch.tokens.data() + static_cast<std::size_t>(row) * T;
  std::int32_t* shifted = batch.targets.data() + static_cast<std::size_t>(row) * T;
  if (used > 0) {
    thread_local std::vector<std::int32_t> window;
    window.resize(used + 1);
    file.read(begin, window);
    std::copy(window.begin(), window.end() - 1, tokens);
    std::copy(window.begin() + 1, window.end(), shifted);
    if (answers != nullptr) answers->mask(begin + 1, {shifted, used});
  }
  std::fill(tokens + used, tokens + T, static_cast<std::int32_t>(std::max<std::int64_t>(0, file.info().end_of_text)));
  std::fill(shifted + used, shifted + T, -1);
  if (starts == nullptr) return;
  // The document that token t of the row is in began at the last start that is not after it; what began before the row
  // begins with the row.
  std::int32_t* first_key = batch.first_key.data() + static_cast<std::size_t>(row) * T;
  auto next = std::upper_bound(starts->begin(), starts->end(), begin);
  std::int32_t current = 0;
  for (std::size_t t = 0; t < T; ++t) {
    while (next != starts->end() && *next <= begin + static_cast<std::int64_t>(t)) {
      current = static_cast<std::int32_t>(*next - begin);
      ++next;
    }
    first_key[t] = current;
  }
}

std::vector<std::vector<std::int64_t>> all_document_starts(const ShardSet& shards) {
  std::vector<std::vector<std::int64_t>> all;
  for (const auto& file : shards.files()) {
    all.push_back(file->document_starts());
    require(!all.back().empty(),
            "{} does not record where documents begin, so data.document_mask cannot be used with it",
            file->info().path);
  }
  return all;
}

}  // namespace sfa
