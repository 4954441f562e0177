#include "data/token_format.h"

#include <fmt/format.h>
#include <xxhash.h>

namespace sfa::token_format {

std::uint64_t checksum(const void* data, std::size_t bytes) {
  return XXH3_64bits(data, bytes);
}

std::string hex_checksum(const void* data, std::size_t bytes, std::uint64_t seed) {
  return fmt::format("{:016x}", XXH3_64bits_withSeed(data, bytes, seed));
}

std::string metadata_checksum(const TokenFileInfo& info, const Digests& digests) {
  // Each field is preceded by its length, so that no two different records read the same.
  std::string record;
  const auto add = [&record](std::string_view field) { record += fmt::format("{}:{}\n", field.size(), field); };
  add(fmt::format("{} {} {} {} {} {} {} {}", kVersion, info.vocab_size, info.end_of_text, info.total_tokens,
                  info.val_start, info.num_documents, info.block_bytes, info.token_bytes));
  for (const std::string* text : {&info.tokenizer_name, &info.tokenizer_hash, &info.tool_version, &info.source_hash})
    add(*text);
  if (!info.tokenizer_path.empty()) add(info.tokenizer_path);  // files of earlier versions have none
  for (const std::string& name : info.source_names) add(name);
  for (const std::string* text : {&digests.block_checksums, &digests.document_starts, &digests.token_text}) add(*text);
  return hex_checksum(record.data(), record.size());
}

}  // namespace sfa::token_format
