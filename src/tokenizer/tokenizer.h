// Tokenizer: text (any bytes) to token ids and back.
//
// Every tokenizer here is byte-level: decode(encode(text)) == text for valid UTF-8 that needs no normalisation, and
// invalid UTF-8 survives byte for byte. A tokenizer is immutable once loaded and may be used from many threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sfa {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  /// What a user calls it: "bytes", or the file's name.
  [[nodiscard]] const std::string& name() const { return name_; }
  /// 16 hex digits over everything that decides an id; shards and checkpoints carry it, so that they are never mixed
  /// up.
  [[nodiscard]] const std::string& hash() const { return hash_; }
  /// Ids are in [0, vocab_size()).
  [[nodiscard]] std::int64_t vocab_size() const { return static_cast<std::int64_t>(offsets_.size()) - 1; }
  /// The id that stands before every document.
  [[nodiscard]] std::uint32_t end_of_text() const { return end_of_text_; }

  /// Appends the ids of `text` to `out`. Special tokens are never made from text.
  virtual void encode(std::string_view text, std::vector<std::uint32_t>& out) const = 0;

  /// The longest prefix of `text` that surely encodes alike whatever follows it, in bytes; 0 when there is none.
  /// Lets a document of any length be encoded in pieces.
  [[nodiscard]] virtual std::size_t safe_prefix(std::string_view text) const = 0;

  /// The bytes that `id` stands for (for end of text: its written form). Throws Error when id is not in the vocabulary.
  [[nodiscard]] std::string_view token_bytes(std::uint32_t id) const;

  /// Concatenated bytes of the ids.
  [[nodiscard]] std::string decode(std::span<const std::uint32_t> ids) const;

 protected:
  Tokenizer() = default;
  /// To be called once by a derived constructor: the bytes of every id, in order.
  void set_vocabulary(std::string name, const std::vector<std::string>& tokens, std::uint32_t end_of_text,
                      std::string_view hashed_rules);

 private:
  std::string name_, hash_, text_;
  std::vector<std::uint32_t> offsets_{0};  // [V + 1] into text_
  std::uint32_t end_of_text_ = 0;
};

/// "bytes" (the 256 byte values and 256 = end of text), tokenizer.json, vocab.json (merges.txt beside it), *.tiktoken,
/// or a folder that holds one of these. The name of what is loaded is `spec`, so that it can be loaded again by
/// its name. Throws Error with one sentence when the file is missing, damaged or of an unknown kind.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& spec);

/// The tokenizer with `hash` (any when it is no hash of a tokenizer: llm.c's files have none) at the first of `places`
/// that has it. Throws Error that names all of them when none has; `advice` ends the sentence.
std::unique_ptr<Tokenizer> find_tokenizer(const std::string& hash, const std::vector<std::string>& places,
                                          const std::string& advice);

/// True when ids of one may be read as ids of the other: every id that both have stands for the same bytes, which both
/// encode alike, they end texts alike, and texts chosen to tell patterns apart get the same ids. So are qwen.tiktoken
/// and the tokenizer.json of Qwen3, which has some special tokens more, or `bytes` and a tokenizer.json without merges.
bool same_ids(const Tokenizer& a, const Tokenizer& b);

/// The files that load_tokenizer(spec) reads; none for "bytes". Copied into one folder they are found by their names.
std::vector<std::string> tokenizer_files(const std::string& spec);

/// The same of a folder; none when it holds no tokenizer.
std::vector<std::string> tokenizer_files_in(const std::string& folder);

}  // namespace sfa
