// One token file, or a row of them: NAME.h5, or NAME_00000.h5, NAME_00001.h5, ... each closed at the first document
// that begins after it holds `shard_tokens` tokens. A finished shard is complete, so a run that was interrupted goes on
// behind the last one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/text_source.h"
#include "data/token_writer.h"

namespace sfa {

/// XXH3-128 of text given piece by piece, 32 hex digits.
class TextHash {
 public:
  TextHash();
  ~TextHash();
  TextHash(const TextHash&) = delete;
  TextHash& operator=(const TextHash&) = delete;
  void add(std::string_view text);
  /// The hash of what was added since the last call.
  std::string take();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct ShardWriterOptions {
  TokenWriterOptions output;
  std::int64_t shard_tokens = 0;  // 0: one file under the very name given
  bool resume = false;            // go on behind the shards that are there
  std::vector<std::string> sources;
};

class ShardWriter {
 public:
  /// Throws Error when a file that would be written exists (unless output.force, or resume for shards), when the shards
  /// that are there have gaps, or come from another tokenizer or other sources.
  ShardWriter(ShardWriterOptions options, const Tokenizer& tokenizer);

  /// The shards that an earlier run has finished; their documents are to be skipped.
  [[nodiscard]] const std::vector<TokenFileInfo>& finished_before() const { return before_; }

  void begin_document();
  void append(std::string_view text, std::span<const std::uint32_t> ids, bool answer = false);
  /// Tokens written by this run.
  [[nodiscard]] std::int64_t tokens() const { return closed_tokens_ + (writer_ != nullptr ? writer_->tokens() : 0); }

  /// Closes the last file. Returns the files that this run wrote; none when a resumed run found nothing left to do.
  std::vector<TokenFileInfo> finish();

 private:
  [[nodiscard]] std::string path_of(std::size_t index) const;
  void open_next();
  void close();

  ShardWriterOptions options_;
  const Tokenizer& tokenizer_;
  std::vector<TokenFileInfo> before_, written_;
  std::unique_ptr<TokenWriter> writer_;
  TextHash hash_;
  std::int64_t closed_tokens_ = 0;
};

}  // namespace sfa
