// What tokenizers ask of Unicode beyond regular expressions (where text is valid UTF-8, and NFC), and what the rules of
// evaluation tasks ask of it (characters, white space, cases).
#pragma once

#include <string>
#include <string_view>

namespace sfa {

/// Length of the longest valid UTF-8 prefix (no overlong forms, no surrogates, at most U+10FFFF).
std::size_t valid_utf8_prefix(std::string_view text);

/// Normalisation form C of valid UTF-8. ASCII is passed over quickly.
std::string normalize_nfc(std::string_view text);

/// Whether normalize_nfc may change the text: true when it is not all ASCII.
bool needs_nfc(std::string_view text);

/// Characters (code points) of valid UTF-8.
std::size_t count_characters(std::string_view text);

/// Bytes of white space at the end of valid UTF-8, and at its beginning.
std::size_t trailing_space(std::string_view text);
std::size_t leading_space(std::string_view text);

/// The first character in title case, all others in lower case (Unicode's simple mappings); valid UTF-8.
std::string capitalized(std::string_view text);

}  // namespace sfa
