// Fills one row of a batch; shared by training and validation.
#pragma once

#include <cstdint>
#include <vector>

#include "data/loader.h"

namespace sfa {

/// Sizes the batch's arrays; first_key only when `with_keys`.
void resize_batch(Batch& batch, int rows, int seq_len, bool with_keys);

/// Row `row` = tokens [begin, begin + targets] of `file`: `targets` inputs with a target each; the rest of the row is
/// padding (token end-of-text, target -1). `starts` is the file's document starts, or null when no first_key is wanted;
/// `answers` those of the file when nothing else is a target, or null.
void fill_row(Batch& batch, int row, const TokenFile& file, std::int64_t begin, int targets,
              const std::vector<std::int64_t>* starts, const AnswerRanges* answers = nullptr);

/// Document starts of every file, for first_key. Throws Error for a file that does not record them.
std::vector<std::vector<std::int64_t>> all_document_starts(const ShardSet& shards);

}  // namespace sfa
