#include "tokenizer/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

#include "core/error.h"

namespace sfa {

const std::string_view kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string_view kQwenPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {
constexpr std::string_view kSpaces =
    R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

// \s and \S outside and \s inside of a bracket, spelt out.
std::string with_unicode_spaces(std::string_view pattern) {
  std::string out;
  bool bracket = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's')
        out += bracket ? std::string(kSpaces) : "[" + std::string(kSpaces) + "]";
      else if (next == 'S' && !bracket)
        out += "[^" + std::string(kSpaces) + "]";
      else
        out += {c, next};
      continue;
    }
    if (c == '[' && !bracket)
      bracket = true;
    else if (c == ']')
      bracket = false;
    out += c;
  }
  return out;
}

constexpr std::array<bool, 256> make_letters() {
  std::array<bool, 256> is{};
  for (int c = 'a'; c <= 'z'; ++c) is[static_cast<std::size_t>(c)] = is[static_cast<std::size_t>(c - 32)] = true;
  return is;
}
constexpr std::array<bool, 256> kLetter = make_letters();

// What a thread needs to run a match; the stack is the JIT's.
struct Scratch {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 16 << 20, nullptr);
  Scratch() { pcre2_jit_stack_assign(context, nullptr, stack); }
  ~Scratch() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};
}  // namespace

struct PreTokenizer::Regex {
  pcre2_code* code = nullptr;
  bool jit = false;
  ~Regex() { pcre2_code_free(code); }
};

PreTokenizer::PreTokenizer(std::string_view pattern, const std::string& tokenizer)
    : regex_(std::make_unique<Regex>()), known_(pattern == kGpt2Pattern || pattern == kQwenPattern) {
  const std::string text = with_unicode_spaces(pattern);
  int code = 0;
  PCRE2_SIZE at = 0;
  regex_->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), PCRE2_UTF | PCRE2_UCP, &code, &at, nullptr);
  if (regex_->code == nullptr) {
    std::array<PCRE2_UCHAR, 256> reason{};
    pcre2_get_error_message(code, reason.data(), reason.size());
    fail("{}: the pattern '{}' is not a regular expression that PCRE2 knows: {} at character {}", tokenizer, pattern,
         reinterpret_cast<const char*>(reason.data()), at);
  }
  regex_->jit = pcre2_jit_compile(regex_->code, PCRE2_JIT_COMPLETE) == 0;
}

PreTokenizer::~PreTokenizer() = default;

std::size_t PreTokenizer::word_end(std::string_view text, std::size_t begin) const {
  if (known_) {
    // Most words are ASCII letters after at most one space. Both known patterns then take exactly the letters, provided
    // that what follows is ASCII too (a character beyond it may be another letter).
    std::size_t end = begin + (text[begin] == ' ' ? 1 : 0);
    const std::size_t first = end;
    while (end < text.size() && kLetter[static_cast<unsigned char>(text[end])]) ++end;
    if (end > first && (end == text.size() || static_cast<unsigned char>(text[end]) < 0x80)) return end;
  }
  thread_local Scratch scratch;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const int found = regex_->jit ? pcre2_jit_match(regex_->code, subject, text.size(), begin, PCRE2_NO_UTF_CHECK,
                                                  scratch.match, scratch.context)
                                : pcre2_match(regex_->code, subject, text.size(), begin, PCRE2_NO_UTF_CHECK,
                                              scratch.match, scratch.context);
  if (found == PCRE2_ERROR_NOMATCH) return text.size();
  if (found < 0) {
    std::array<PCRE2_UCHAR, 256> reason{};
    pcre2_get_error_message(found, reason.data(), reason.size());
    fail("the tokenizer's pattern failed on a text of {} bytes: {}", text.size(),
         reinterpret_cast<const char*>(reason.data()));
  }
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(scratch.match);
  if (range[0] > begin) return range[0];
  if (range[1] > begin) return range[1];
  std::size_t next = begin + 1;  // an empty match: one character
  while (next < text.size() && (static_cast<unsigned char>(text[next]) & 0xC0) == 0x80) ++next;
  return next;
}

}  // namespace sfa
