// Text files to one token shard: reads, encodes on all cores, writes in order; memory is bounded whatever the input's
// size.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "data/text_source.h"
#include "data/token_writer.h"
#include "tokenizer/tokenizer.h"

namespace sfa {

struct TokenizeOptions {
  TextSourceOptions source;
  TokenWriterOptions output;
  int threads = 0;             // that encode; 0: as many as there are cores
  bool show_progress = false;  // on standard error
};

struct TokenizeResult {
  TokenFileInfo info;
  std::uint64_t text_bytes = 0;  // of the inputs, as read
  double seconds = 0.0;
};

/// Throws Error with one sentence; then nothing appears under the output's name and a file that was there stays as it
/// was.
TokenizeResult tokenize(const TokenizeOptions& options, const Tokenizer& tokenizer);

}  // namespace sfa
