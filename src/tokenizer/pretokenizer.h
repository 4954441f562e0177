// Cuts text into the words that BPE merges within: a Unicode regular expression, run by PCRE2 with JIT.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace sfa {

/// The patterns of GPT-2 and of Qwen 2 and 3, as their makers publish them.
extern const std::string_view kGpt2Pattern, kQwenPattern;

class PreTokenizer {
 public:
  /// Throws Error naming the tokenizer when the pattern does not compile. \s and \S mean Unicode's White_Space, as they
  /// do in the regex engines of the tokenizers and tiktoken packages (PCRE2's own \s differs in U+180E).
  PreTokenizer(std::string_view pattern, const std::string& tokenizer);
  ~PreTokenizer();
  PreTokenizer(const PreTokenizer&) = delete;
  PreTokenizer& operator=(const PreTokenizer&) = delete;

  /// End of the word that begins at `begin` (< text.size()); `text` is valid UTF-8. Text that the pattern does not
  /// match is a word up to the next match. Thread-safe.
  [[nodiscard]] std::size_t word_end(std::string_view text, std::size_t begin) const;

  /// True when a word surely ends between an ASCII letter or digit and a single space that an ASCII letter follows: the
  /// place at which long text may be cut.
  [[nodiscard]] bool ends_words_at_spaces() const { return known_; }

 private:
  struct Regex;
  std::unique_ptr<Regex> regex_;
  bool known_;
};

}  // namespace sfa
