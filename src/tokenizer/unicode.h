// The two things that tokenizers ask of Unicode beyond regular expressions: where text is valid UTF-8, and NFC.
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

}  // namespace sfa
