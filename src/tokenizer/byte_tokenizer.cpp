#include "tokenizer/byte_tokenizer.h"

namespace sfa {

ByteTokenizer::ByteTokenizer() {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  tokens.emplace_back("<|endoftext|>");
  set_vocabulary("bytes", tokens, 256, "bytes");
}

void ByteTokenizer::encode(std::string_view text, std::vector<std::uint32_t>& out) const {
  const std::size_t begin = out.size();
  out.resize(begin + text.size());
  for (std::size_t i = 0; i < text.size(); ++i) out[begin + i] = static_cast<unsigned char>(text[i]);
}

}  // namespace sfa
