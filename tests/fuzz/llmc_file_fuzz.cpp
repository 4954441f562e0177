// libFuzzer target, built and run by scripts/fuzz.sh.
// sources: src/data/token_f*.cpp src/core/file.cpp src/core/hdf5.cpp
// libraries: -lfmt -lxxhash -lhdf5_serial
//
// llm.c's .bin shards (1024 bytes of header, then tokens of 16 or 32 bits): the first bytes choose magic, version and
// count, so that most inputs get past them; tokens read one by one and in ranges are the same, and none is outside the
// vocabulary.
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "data/token_file.h"
#include "fuzz/fuzz.h"

namespace {
void read_everything(std::string_view bytes) {
  const sfa::fuzz::MemoryFile file(bytes);
  try {
    const sfa::TokenFile tokens(file.path());
    const auto n = static_cast<std::size_t>(tokens.info().total_tokens);
    sfa::fuzz::must(n <= bytes.size(), "a file has no more tokens than bytes");
    std::vector<std::int32_t> whole(n), parts(n);
    tokens.read(0, whole);
    for (std::size_t at = 0, step = 1; at < n; at += step, step = step * 2 + 1)
      tokens.read(static_cast<std::int64_t>(at), std::span(parts).subspan(at, std::min(step, n - at)));
    sfa::fuzz::must(whole == parts, "ranges hold what the whole holds");
    for (const std::int32_t id : whole)
      sfa::fuzz::must(id >= 0 && id < tokens.info().vocab_size, "every id is in the vocabulary");
    for (const std::int64_t start : tokens.document_starts())
      sfa::fuzz::must(whole.at(static_cast<std::size_t>(start)) == tokens.info().end_of_text,
                      "a document starts with its end-of-text id");
  } catch (const sfa::Error&) {
  }
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  read_everything({reinterpret_cast<const char*>(data), size});
  if (size < 4) return 0;
  std::string made(1024 + size - 4, '\0');
  const std::int32_t magics[] = {20240520, 20240801}, versions[] = {1, 7, 1, 7, 2};
  const std::int32_t header[] = {magics[data[0] % 2], versions[data[1] % 5],
                                 static_cast<std::int32_t>((size - 4) / (data[2] % 2 ? 2 : 4)) + (data[3] % 8 == 7)};
  std::memcpy(made.data(), header, sizeof header);
  std::copy(data + 4, data + size, made.begin() + 1024);
  read_everything(made);
  return 0;
}
