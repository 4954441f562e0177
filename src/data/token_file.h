// A token shard on disk, read side: this project's HDF5 files, described in docs/data.md, and llm.c's .bin files.
//
// HDF5 is asked once, when the file is opened, for the provenance and for the offset of the contiguous token array;
// after that tokens are read with pread, so that HDF5's global lock is never in the way of the loader. Each block of
// the array carries an XXH3-64 checksum that is verified the first time a token of the block is read.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"

namespace sfa {

/// Which part of a file: `train` is [0, val_start), `val` the tail [val_start, total_tokens), `all` the whole.
enum class Split : std::uint8_t { train, val, all };
const char* name_of(Split split);

/// Where the tokens came from and what they mean.
struct TokenFileInfo {
  std::string path;
  std::string tokenizer_name, tokenizer_hash;  // see Tokenizer::hash
  std::string tokenizer_path;                  // where its file was, absolute; empty: has none, or not recorded
  std::string tool_version;                    // of the program that wrote the file
  std::vector<std::string> source_names;       // inputs in order
  std::string source_hash;                     // XXH3-128 of the inputs' bytes in order, hex
  std::int64_t vocab_size = 0;
  std::int64_t end_of_text = -1;  // the id before each document
  std::int64_t total_tokens = 0;
  std::int64_t val_start = 0;      // == total_tokens when there is no validation tail
  std::int64_t num_documents = 0;  // -1: not recorded
  std::int64_t block_bytes = 0;    // bytes under one checksum; 0: the file has no checksums (llm.c's .bin)
  int token_bytes = 2;             // 2 (uint16) or 4 (uint32)
  bool has_answers = false;        // says which tokens are answers
};

class TokenFile {
 public:
  /// Opens and checks everything but the tokens themselves. Throws Error naming the file and what is wrong with it.
  explicit TokenFile(const std::string& path);

  [[nodiscard]] const TokenFileInfo& info() const { return info_; }

  /// First token and one past the last of a split. Throws Error for `val` of a file that has no validation tail.
  [[nodiscard]] std::pair<std::int64_t, std::int64_t> range(Split split) const;

  /// Tokens [begin, begin + out.size()). Thread-safe. Verifies the checksum of every block that is touched for the
  /// first time, and that every id is below vocab_size.
  void read(std::int64_t begin, std::span<std::int32_t> out) const;

  /// Position of the first token (its end-of-text id) of every document, ascending; read and verified at each call.
  /// Found by reading the whole file where it does not record them.
  [[nodiscard]] std::vector<std::int64_t> document_starts() const;

  /// First position and one past the last of every range of answers, ascending; read and verified at each call. Empty
  /// where there is none, or the file does not say.
  [[nodiscard]] std::vector<std::int64_t> answers() const;

  /// The bytes of every id as the tokenizer had them, so that a shard can be shown without its tokenizer: text and
  /// offsets [V + 1] into it. Empty for files that do not record them.
  struct Vocabulary {
    std::string text;
    std::vector<std::uint32_t> offsets;
    [[nodiscard]] bool empty() const { return offsets.empty(); }
    [[nodiscard]] std::string_view operator[](std::int64_t id) const {
      const auto i = static_cast<std::size_t>(id);
      return std::string_view(text).substr(offsets[i], offsets[i + 1] - offsets[i]);
    }
  };
  [[nodiscard]] Vocabulary vocabulary() const;

  /// Reads the whole file and checks every checksum; throws Error naming the first bad block.
  void verify() const;

 private:
  void open_hdf5();
  bool open_llmc();  // false: not a file of llm.c
  [[nodiscard]] std::vector<std::int64_t> scan_document_starts() const;
  void check_block(std::int64_t block, std::vector<char>& buffer) const;
  [[nodiscard]] std::int64_t token_area_bytes() const { return info_.total_tokens * info_.token_bytes; }

  TokenFileInfo info_;
  File file_;
  std::uint64_t offset_ = 0;  // of token 0 in the file
  std::vector<std::uint64_t> checksums_;
  std::unique_ptr<std::atomic<bool>[]> verified_;
  std::string document_starts_hash_, token_text_hash_, answers_hash_;
};

}  // namespace sfa
