// The raw-byte tokenizer: id = byte value, 256 = end of text. Needs no file and loses nothing.
#pragma once

#include "tokenizer/tokenizer.h"

namespace sfa {

class ByteTokenizer final : public Tokenizer {
 public:
  ByteTokenizer();
  void encode(std::string_view text, std::vector<std::uint32_t>& out) const override;
  [[nodiscard]] std::size_t safe_prefix(std::string_view text) const override { return text.size(); }
};

}  // namespace sfa
