// Byte-level BPE: NFC where the tokenizer asks for it, words by a regular expression, merges within each word.
#pragma once

#include <string>
#include <vector>

#include "tokenizer/bpe_merger.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/tokenizer.h"

namespace sfa {

/// What a tokenizer file says.
struct BpeDefinition {
  std::string name;
  std::vector<std::string> tokens;  // bytes of each id; empty for an id that is not used
  std::vector<BpeMerge> merges;
  std::string pattern;
  bool nfc = false;
  bool whole_words_first = false;  // a word that is a token is that token, whatever the merges make of it
  std::uint32_t end_of_text = 0;
  std::vector<std::uint32_t> special;  // ids that text never becomes
};

class BpeTokenizer final : public Tokenizer {
 public:
  /// Throws Error when a byte has no token or an id is out of range.
  explicit BpeTokenizer(BpeDefinition definition);

  /// Invalid UTF-8 is cut out: each invalid byte becomes its single-byte id, and the text between is encoded on its
  /// own.
  void encode(std::string_view text, std::vector<std::uint32_t>& out) const override;
  [[nodiscard]] std::size_t safe_prefix(std::string_view text) const override;

 private:
  struct WordSlot {
    std::uint32_t hash, id;
  };
  static std::array<std::uint32_t, 256> byte_ids(const BpeDefinition& definition);
  void index_words(const BpeDefinition& definition);
  /// The id of a word that is a token and that merging makes that token; -1 otherwise.
  [[nodiscard]] std::int64_t whole_word(std::string_view word, std::uint64_t hash) const;
  void encode_valid(std::string_view text, std::vector<std::uint32_t>& out) const;
  void encode_word(std::string_view word, std::vector<std::uint32_t>& out) const;

  std::array<std::uint32_t, 256> byte_ids_;
  BpeMerger merger_;
  PreTokenizer words_;
  bool nfc_;
  std::uint64_t serial_;              // tells the tokenizers of a process apart in the threads' caches
  std::vector<WordSlot> word_slots_;  // open addressing, at most half full
};

}  // namespace sfa
