// Text files to token shards: reads, encodes on all cores, writes in order; memory is bounded whatever the input's
// size.
#pragma once

#include <cstdint>
#include <vector>

#include "data/shard_writer.h"
#include "data/text_source.h"
#include "tokenizer/tokenizer.h"

namespace sfa {

struct TokenizeOptions {
  TextSourceOptions source;
  TokenWriterOptions output;
  std::int64_t shard_tokens = 0;  // 0: one file; see ShardWriter
  bool resume = false;
  int threads = 0;             // that encode; 0: as many as there are cores
  bool show_progress = false;  // on standard error
};

struct TokenizeResult {
  std::vector<TokenFileInfo> files;  // that this run wrote; none when a resumed run found nothing left to do
  std::uint64_t text_bytes = 0;      // of the inputs, decompressed
  double seconds = 0.0;
};

/// Throws Error with one sentence; then nothing appears under the name of the file at work, a file that was there stays
/// as it was, and finished shards stay.
TokenizeResult tokenize(const TokenizeOptions& options, const Tokenizer& tokenizer);

}  // namespace sfa
