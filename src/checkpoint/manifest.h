// The manifest of a checkpoint: what is in manifest.json, read without trust.
//
// The file is one JSON object. Its first line holds format, version and the XXH3-64 of all bytes after that line, so
// that a change of any bit is seen before anything else is believed:
//   {"format":"sfa-checkpoint","version":1,"xxh3":"0123456789abcdef",
//   "block_bytes":4194304,"config":"...","files":{...},"state":{...},"step":1000,"tensors":{...}}
// files:   {"rank_00000.h5": {"bytes": size of the file, "structure_xxh3": of all its bytes outside of pieces}}
// tensors: {"param/x": {"dtype": "f32", "shape": [2, 3], "pieces": [{"file", "offset": bytes, "begin", "count":
// elements, "xxh3": [a block]}]}} The blocks of a piece are block_bytes long, the last one shorter; each has its own
// checksum, so that a part of a large tensor is checked without reading the rest.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace sfa::checkpoint {

inline constexpr std::int64_t kBlockBytes = std::int64_t{4} << 20;
inline constexpr const char* kManifestName = "manifest.json";

/// Elements [begin, begin + count) of a tensor at a byte offset of a file.
struct Piece {
  std::string file;
  std::int64_t offset = 0;
  std::int64_t begin = 0;
  std::int64_t count = 0;
  std::vector<std::uint64_t> checksums;  // one a block
};

struct StoredTensor {
  CheckpointTensor tensor;
  std::vector<Piece> pieces;  // ascending, no gap, no overlap
};

struct StoredFile {
  std::int64_t bytes = 0;
  std::uint64_t structure_checksum = 0;
};

struct Manifest {
  std::int64_t step = 0;
  std::int64_t block_bytes = kBlockBytes;
  std::map<std::string, StoredFile> files;
  std::map<std::string, StoredTensor> tensors;
  nlohmann::json state;
  std::string config_yaml;
};

/// Throws Error unless names, shapes, ranges and offsets make sense: every tensor covered exactly once, every piece
/// inside its file, no two pieces on the same bytes. Sorts the pieces of each tensor. `where` opens the sentence.
void validate(Manifest& manifest, const std::string& where);

/// The text of manifest.json; throws Error when state or config cannot be written as JSON (NaN, infinity, bytes that
/// are no UTF-8).
std::string to_text(const Manifest& manifest);
/// The inverse, validated; `where` is the path for messages.
Manifest parse_manifest(std::string_view text, const std::string& where);
/// Reads and parses `folder`/manifest.json.
Manifest read_manifest(const std::filesystem::path& folder);

/// One rank's part: {"file", "bytes", "structure_xxh3", "tensors"}, as CheckpointWriter::finish_file() returns it.
nlohmann::json piece_list(const std::string& file, const StoredFile& stored,
                          const std::map<std::string, StoredTensor>& tensors);
/// Adds a rank's part to a manifest.
void merge_piece_list(Manifest& manifest, const nlohmann::json& list, const std::string& where);

/// Throws Error unless `name` can stand in a file: path components without "", "." and "..", printable, no '@', at most
/// 512 bytes.
void check_tensor_name(const std::string& name, const std::string& where);
/// Elements of the shape, or -1 when it is negative somewhere, has more than 16 dimensions, or its bytes overflow 2^62.
std::int64_t checked_numel(const std::vector<std::int64_t>& shape, DType dtype);

/// "rank_00000.h5"
std::string rank_file_name(int rank);
/// "step_00001000", ".step_00001000.tmp", ...
std::string step_folder_name(std::int64_t step);
std::string temporary_name(std::int64_t step);
std::string aside_name(std::int64_t step);

}  // namespace sfa::checkpoint
