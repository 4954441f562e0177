// What writer and reader of token shards must agree on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "data/token_file.h"

namespace sfa::token_format {

inline constexpr const char* kFormat = "sfa-tokens";
inline constexpr std::int64_t kVersion = 1;
inline constexpr std::int64_t kBlockBytes = 1 << 20;

/// XXH3-64 of the bytes.
std::uint64_t checksum(const void* data, std::size_t bytes);
/// The same as 16 hex digits, continuing from `seed`.
std::string hex_checksum(const void* data, std::size_t bytes, std::uint64_t seed = 0);

/// The checksums of the small datasets, and over everything that the attributes say.
struct Digests {
  std::string block_checksums, document_starts, token_text;
};
std::string metadata_checksum(const TokenFileInfo& info, const Digests& digests);

}  // namespace sfa::token_format
