// Learns a byte-level BPE vocabulary from text (Sennrich et al. 2016, on bytes as GPT-2 does): again and again the
// adjacent pair of tokens that occurs most often within words becomes a token; of equally frequent pairs the one with
// the lower ids. The ids begin with the 256 bytes in the order of GPT-2's alphabet, as in the `tokenizers` package,
// whose merges these are on the same text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

#include "tokenizer/bpe_tokenizer.h"

namespace sfa {

class BpeTrainer {
 public:
  /// `pattern`: cuts words, see PreTokenizer. `nfc`: text is normalised first.
  BpeTrainer(std::string_view pattern, bool nfc);

  /// Counts the words of a text, which is complete: the words do not go on in the next one. Invalid UTF-8 is left out.
  void add(std::string_view text);

  /// Vocabulary of `vocab_size` ids: 256 bytes, merges, and <|endoftext|> as the last id. Fewer when no pair is left.
  /// Throws Error when vocab_size is below 257.
  [[nodiscard]] BpeDefinition train(std::int64_t vocab_size) const;

  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] std::size_t distinct_words() const { return counts_.size(); }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  std::string pattern_;
  bool nfc_;
  PreTokenizer words_;
  std::unordered_map<std::string, std::int64_t, Hash, std::equal_to<>> counts_;
  std::uint64_t bytes_ = 0;
};

/// The tokenizer.json of a definition with one of the two known patterns, readable by load_tokenizer and by
/// `tokenizers`.
std::string tokenizer_json(const BpeDefinition& definition);

}  // namespace sfa
