// A token shard on disk, write side: tokens are appended as they come, in bounded memory, and the finished file appears
// under its name in one step. Until then the tokens lie in a nameless temporary file in the same folder.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"
#include "data/token_file.h"
#include "tokenizer/tokenizer.h"

namespace sfa {

struct TokenWriterOptions {
  std::string path;
  double val_fraction = 0.0;  // of the tokens, in [0, 1); the tail
  bool force = false;         // replace a file that exists
  bool answers = false;       // record which tokens are answers
  bool answers_end = true;    // the end-of-text id behind an answer belongs to it: the model learns to stop there
};

/// Where the validation tail begins: round((1 - fraction) * total), moved to the nearest document start that lies
/// within a twentieth of the tail's length, so that documents are not cut where that costs little. In [1, total] for
/// total >= 1.
std::int64_t validation_start(std::int64_t total, double fraction, std::span<const std::int64_t> document_starts);

class TokenWriter {
 public:
  /// Throws Error when the file exists (without force), its folder cannot be written, or val_fraction is out of range.
  TokenWriter(TokenWriterOptions options, const Tokenizer& tokenizer);

  /// Writes the end-of-text id that opens a document and records its position.
  void begin_document();
  void append(std::span<const std::uint32_t> ids, bool answer = false);
  [[nodiscard]] std::int64_t tokens() const { return total_; }
  [[nodiscard]] std::int64_t documents() const { return static_cast<std::int64_t>(document_starts_.size()); }

  /// Puts the file in its place. Throws Error when no token was written; nothing appears then.
  TokenFileInfo finish(std::vector<std::string> source_names, std::string source_hash);

 private:
  void flush_block();
  void write_hdf5(const std::string& path, const TokenFileInfo& info);

  TokenWriterOptions options_;
  const Tokenizer& tokenizer_;
  int token_bytes_;
  File raw_;
  std::int64_t raw_bytes_ = 0, total_ = 0;
  std::vector<char> block_;  // the block being filled
  std::vector<std::uint64_t> checksums_;
  std::vector<std::int64_t> document_starts_;
  std::vector<std::int64_t> answer_bounds_;  // begin, end, begin, end, ...
};

}  // namespace sfa
