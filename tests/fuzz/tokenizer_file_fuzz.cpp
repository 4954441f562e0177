// libFuzzer target, built and run by scripts/fuzz.sh.
// sources: src/tokenizer/*.cpp src/core/file.cpp
// libraries: -lfmt -lxxhash -lpcre2-8 -lutf8proc
//
// Tokenizer files: any bytes either load, and then encode and decode text without loss, or end in one sfa::Error.

#include <optional>

#include "core/error.h"
#include "fuzz/fuzz.h"
#include "tokenizer/bpe_files.h"
#include "tokenizer/bpe_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  const sfa::fuzz::MemoryFile file(rest);
  try {
    sfa::BpeDefinition definition;
    if (data[0] % 3 == 0) {
      definition = sfa::read_tiktoken(file.path());
    } else if (data[0] % 3 == 1) {
      const std::size_t cut = rest.find('\n');  // vocab.json on the first line, merges.txt behind it
      const sfa::fuzz::MemoryFile merges(cut == std::string_view::npos ? "" : rest.substr(cut + 1));
      const sfa::fuzz::MemoryFile vocabulary(rest.substr(0, cut));
      definition = sfa::read_gpt2_files(vocabulary.path(), merges.path());
    } else {
      definition = sfa::read_tokenizer_json(file.path());
    }
    definition.name = "fuzz";
    const bool nfc = definition.nfc;
    const sfa::BpeTokenizer tokenizer(std::move(definition));
    for (const std::string_view text :
         {"Hello, world! It's 12\n\n  \xe4\xb8\x96 \xf0\x9f\x98\x80", "\xff\xfe ab", "aaaaaaaa bbbb"}) {
      std::vector<std::uint32_t> ids;
      tokenizer.encode(text, ids);
      sfa::fuzz::must(nfc || tokenizer.decode(ids) == text, "decode(encode(text)) == text");
    }
  } catch (const sfa::Error&) {
  }
  return 0;
}
