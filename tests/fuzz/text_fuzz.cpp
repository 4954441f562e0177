// libFuzzer target, built and run by scripts/fuzz.sh.
// sources: src/tokenizer/*.cpp src/core/file.cpp src/data/text_source.cpp src/data/byte_stream.cpp
// libraries: -lfmt -lxxhash -lpcre2-8 -lutf8proc -lz -llzma -lzstd
//
// Text through tokenizers and the readers of text files: encoding loses nothing, cutting at safe_prefix changes
// nothing, and .jsonl of any bytes is read or refused with one sfa::Error.

#include <memory>

#include "core/error.h"
#include "data/text_source.h"
#include "fuzz/fuzz.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace {
void check(const sfa::Tokenizer& tokenizer, std::string_view text, bool nfc) {
  std::vector<std::uint32_t> whole, parts;
  tokenizer.encode(text, whole);
  if (!nfc) sfa::fuzz::must(tokenizer.decode(whole) == text, "decode(encode(text)) == text");
  const std::size_t safe = tokenizer.safe_prefix(text.substr(0, text.size() / 2));
  tokenizer.encode(text.substr(0, safe), parts);
  tokenizer.encode(text.substr(safe), parts);
  sfa::fuzz::must(parts == whole, "pieces up to the safe prefix encode like the whole");
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string golden = "tests/tokenizer/golden/";  // the script runs in the root of the tree
  static const auto gpt2 = sfa::load_tokenizer(golden + "small_gpt2.json"),
                    qwen = sfa::load_tokenizer(golden + "small_qwen.json");
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  check(*gpt2, text, false);
  check(*qwen, text, true);
  if (sfa::valid_utf8_prefix(text) == text.size()) {
    const std::string once = sfa::normalize_nfc(text);
    sfa::fuzz::must(sfa::normalize_nfc(once) == once, "NFC twice is NFC once");
  }
  const sfa::fuzz::MemoryFile file(text);
  for (const auto format : {sfa::TextFormat::jsonl, sfa::TextFormat::text}) {
    try {
      sfa::TextSource source({{file.path()}, format, "text"});
      for (sfa::TextPiece piece; source.next(piece);) sfa::fuzz::must(!piece.text.empty(), "no piece is empty");
    } catch (const sfa::Error&) {
    }
  }
  return 0;
}
