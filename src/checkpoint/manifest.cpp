#include "checkpoint/manifest.h"

#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "core/error.h"
#include "core/file.h"

namespace sfa::checkpoint {
namespace {
using nlohmann::json;

constexpr std::string_view kFormat = "sfa-checkpoint";
constexpr std::uint64_t kMaxManifestBytes = std::uint64_t{1} << 30;
constexpr std::int64_t kMaxBytes = std::int64_t{1} << 62;
constexpr int kMaxDepth = 64;  // of nested JSON values

std::string hex(std::uint64_t value) {
  return fmt::format("{:016x}", value);
}

// Typed access to untrusted JSON: every miss is a sentence that says where.
const json& member(const json& object, const char* key, const std::string& where) {
  require(object.is_object() && object.contains(key), "{}: '{}' is missing", where, key);
  return object.at(key);
}

std::int64_t int_of(const json& value, const char* key, const std::string& where) {
  require(value.is_number_integer() &&
              (!value.is_number_unsigned() || value.get<std::uint64_t>() <= std::numeric_limits<std::int64_t>::max()),
          "{}: '{}' is not a 64-bit integer", where, key);
  const auto number = value.get<std::int64_t>();
  require(number >= 0, "{}: '{}' is negative ({})", where, key, number);
  return number;
}

std::int64_t get_int(const json& object, const char* key, const std::string& where) {
  return int_of(member(object, key, where), key, where);
}

const std::string& get_string(const json& object, const char* key, const std::string& where) {
  const json& value = member(object, key, where);
  require(value.is_string(), "{}: '{}' is not a string", where, key);
  return value.get_ref<const std::string&>();
}

const json& get_object(const json& object, const char* key, const std::string& where) {
  const json& value = member(object, key, where);
  require(value.is_object(), "{}: '{}' is not an object", where, key);
  return value;
}

const json& get_array(const json& object, const char* key, const std::string& where) {
  const json& value = member(object, key, where);
  require(value.is_array(), "{}: '{}' is not a list", where, key);
  return value;
}

std::uint64_t checksum_of(const json& value, const char* key, const std::string& where) {
  require(value.is_string(), "{}: '{}' is not a checksum", where, key);
  const auto& text = value.get_ref<const std::string&>();
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, 16);
  require(text.size() == 16 && error == std::errc() && end == text.data() + text.size(),
          "{}: '{}' is not a checksum of 16 hexadecimal digits", where, key);
  return number;
}

json tensor_to_json(const StoredTensor& stored) {
  json pieces = json::array();
  for (const Piece& piece : stored.pieces) {
    json checksums = json::array();
    for (const std::uint64_t checksum : piece.checksums) checksums.push_back(hex(checksum));
    pieces.push_back({{"file", piece.file},
                      {"offset", piece.offset},
                      {"begin", piece.begin},
                      {"count", piece.count},
                      {"xxh3", std::move(checksums)}});
  }
  return {{"dtype", name_of(stored.tensor.dtype)}, {"shape", stored.tensor.shape}, {"pieces", std::move(pieces)}};
}

json tensors_to_json(const std::map<std::string, StoredTensor>& tensors) {
  json all = json::object();
  for (const auto& [name, stored] : tensors) all[name] = tensor_to_json(stored);
  return all;
}

StoredTensor tensor_from_json(const std::string& name, const json& value, const std::string& file_where) {
  const std::string where = fmt::format("{}: tensor '{}'", file_where, name);
  StoredTensor stored;
  stored.tensor.name = name;
  try {
    stored.tensor.dtype = dtype_from_name(get_string(value, "dtype", where));
  } catch (const Error& error) {
    fail("{}: {}", where, error.what());
  }
  for (const json& dim : get_array(value, "shape", where)) stored.tensor.shape.push_back(int_of(dim, "shape", where));
  for (const json& entry : get_array(value, "pieces", where)) {
    Piece piece;
    piece.file = get_string(entry, "file", where);
    piece.offset = get_int(entry, "offset", where);
    piece.begin = get_int(entry, "begin", where);
    piece.count = get_int(entry, "count", where);
    for (const json& checksum : get_array(entry, "xxh3", where))
      piece.checksums.push_back(checksum_of(checksum, "xxh3", where));
    stored.pieces.push_back(std::move(piece));
  }
  return stored;
}

bool is_rank_file_name(std::string_view name) {
  if (!name.starts_with("rank_") || !name.ends_with(".h5")) return false;
  const std::string_view digits = name.substr(5, name.size() - 8);
  return digits.size() == 5 && std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// Every element of the tensor exactly once, in pieces that lie inside their files.
void validate_tensor(StoredTensor& stored, const Manifest& manifest, const std::string& where) {
  const auto element = static_cast<std::int64_t>(size_of(stored.tensor.dtype));
  const std::int64_t numel = checked_numel(stored.tensor.shape, stored.tensor.dtype);
  require(numel >= 0, "{}: its shape is impossible", where);
  std::sort(stored.pieces.begin(), stored.pieces.end(),
            [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
  std::int64_t covered = 0;
  for (const Piece& piece : stored.pieces) {
    require(piece.count > 0, "{}: a piece is empty", where);
    require(piece.begin >= covered, "{}: two pieces hold element {}", where, piece.begin);
    require(piece.begin == covered, "{}: elements [{}, {}) are in no piece", where, covered, piece.begin);
    require(piece.count <= numel - piece.begin, "{}: a piece goes on past its {} elements", where, numel);
    covered += piece.count;
    const auto file = manifest.files.find(piece.file);
    require(file != manifest.files.end(), "{}: a piece is in '{}', which is not listed", where, piece.file);
    const std::int64_t bytes = piece.count * element;  // no overflow: count <= numel
    require(piece.offset <= file->second.bytes && bytes <= file->second.bytes - piece.offset,
            "{}: a piece lies outside of {}", where, piece.file);
    const std::int64_t blocks = bytes / manifest.block_bytes + (bytes % manifest.block_bytes != 0 ? 1 : 0);
    require(std::cmp_equal(piece.checksums.size(), blocks), "{}: a piece has {} checksums, {} were expected", where,
            piece.checksums.size(), blocks);
  }
  require(covered == numel, "{}: elements [{}, {}) are in no piece", where, covered, numel);
}

void validate_no_shared_bytes(const Manifest& manifest, const std::string& where) {
  struct Extent {
    std::string_view file;
    std::int64_t begin, end;
    const std::string* tensor;
  };
  std::vector<Extent> extents;
  for (const auto& [name, stored] : manifest.tensors)
    for (const Piece& piece : stored.pieces)
      extents.push_back({piece.file, piece.offset,
                         piece.offset + piece.count * static_cast<std::int64_t>(size_of(stored.tensor.dtype)), &name});
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return std::pair(a.file, a.begin) < std::pair(b.file, b.begin); });
  for (std::size_t i = 1; i < extents.size(); ++i)
    require(extents[i].file != extents[i - 1].file || extents[i].begin >= extents[i - 1].end,
            "{}: tensors '{}' and '{}' share bytes of {}", where, *extents[i - 1].tensor, *extents[i].tensor,
            extents[i].file);
}

// JSON has no NaN and no infinity, and would turn them into null without a word.
void check_finite(const json& value, const std::string& path) {
  if (value.is_number_float())
    require(std::isfinite(value.get<double>()), "internal error: the run's state holds a number that is not finite: {}",
            path);
  if (value.is_structured())
    for (const auto& [key, child] : value.items()) check_finite(child, path + "/" + key);
}

}  // namespace

std::int64_t checked_numel(const std::vector<std::int64_t>& shape, DType dtype) {
  if (shape.size() > 16) return -1;
  std::int64_t bytes = static_cast<std::int64_t>(size_of(dtype));
  bool empty = false;
  for (const std::int64_t dim : shape) {
    if (dim < 0) return -1;
    if (dim == 0) {
      empty = true;
    } else {
      if (bytes > kMaxBytes / dim) return -1;
      bytes *= dim;
    }
  }
  return empty ? 0 : bytes / static_cast<std::int64_t>(size_of(dtype));
}

void check_tensor_name(const std::string& name, const std::string& where) {
  bool good = !name.empty() && name.size() <= 512;
  for (const char c : name) good = good && c > ' ' && c < 127 && c != '@';
  for (std::size_t begin = 0; good && begin <= name.size();) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    const std::string_view component = std::string_view(name).substr(begin, end - begin);
    good = !component.empty() && component != "." && component != "..";
    begin = end + 1;
  }
  std::string shown = name.substr(0, 80);
  for (char& c : shown)
    if (c < ' ' || c >= 127) c = '?';
  require(good, "{}: '{}' is no name for a tensor", where, shown);
}

void validate(Manifest& manifest, const std::string& where) {
  require(manifest.block_bytes >= 4096 && manifest.block_bytes <= (std::int64_t{1} << 30) &&
              manifest.block_bytes % 4096 == 0,
          "{}: 'block_bytes' is {}; a multiple of 4096 up to 2^30 was expected", where, manifest.block_bytes);
  require(manifest.step >= 0, "{}: 'step' is negative", where);
  require(manifest.state.is_object(), "{}: 'state' is not an object", where);
  for (const auto& [name, file] : manifest.files) {
    require(is_rank_file_name(name), "{}: a file is not called rank_NNNNN.h5", where);
    require(file.bytes >= 0 && file.bytes <= kMaxBytes, "{}: the size of {} is impossible", where, name);
  }
  for (auto& [name, stored] : manifest.tensors) {
    check_tensor_name(name, where);
    validate_tensor(stored, manifest, fmt::format("{}: tensor '{}'", where, name));
  }
  validate_no_shared_bytes(manifest, where);
}

std::string to_text(const Manifest& manifest) {
  check_finite(manifest.state, "state");
  json files = json::object();
  for (const auto& [name, file] : manifest.files)
    files[name] = {{"bytes", file.bytes}, {"structure_xxh3", hex(file.structure_checksum)}};
  const json body = {{"step", manifest.step},   {"block_bytes", manifest.block_bytes},
                     {"files", files},          {"tensors", tensors_to_json(manifest.tensors)},
                     {"state", manifest.state}, {"config", manifest.config_yaml}};
  std::string rest;
  try {
    rest = body.dump().substr(1) + "\n";
  } catch (const json::exception&) {
    fail("internal error: the run's state or configuration holds bytes that are no UTF-8");
  }
  return fmt::format("{{\"format\":\"{}\",\"version\":{},\"xxh3\":\"{}\",\n{}", kFormat, kCheckpointVersion,
                     hex(XXH3_64bits(rest.data(), rest.size())), rest);
}

Manifest parse_manifest(std::string_view text, const std::string& where) {
  // The first line, closed, is an object of its own.
  const std::size_t line_end = text.find('\n');
  const std::string_view line = text.substr(0, std::min<std::size_t>(line_end, 4096));
  json header;
  if (line_end != std::string_view::npos && line.ends_with(','))
    header = json::parse(std::string(line.substr(0, line.size() - 1)) + "}", nullptr, false);
  require(header.is_object() && header.contains("format") && header["format"] == kFormat,
          "{} is not the manifest of a checkpoint, or its first line is damaged", where);
  const std::int64_t version = get_int(header, "version", where);
  require(version == kCheckpointVersion, "{} has format version {}; this build reads version {}{}", where, version,
          kCheckpointVersion, version > kCheckpointVersion ? ", a newer build of sfa is needed" : "");
  const std::string_view rest = text.substr(line_end + 1);
  require(XXH3_64bits(rest.data(), rest.size()) == checksum_of(member(header, "xxh3", where), "xxh3", where),
          "{} is damaged: its checksum does not match its content", where);

  std::string object = "{";
  object += rest;
  json root;
  try {
    root = json::parse(object, [&](int depth, json::parse_event_t, json&) {
      require(depth <= kMaxDepth, "{} is nested deeper than {} levels", where, kMaxDepth);
      return true;
    });
  } catch (const json::parse_error& error) {
    fail("{} is not valid JSON (byte {} after its first line)", where, error.byte);
  } catch (const json::exception&) {
    fail("{} holds a number that is out of range", where);
  }
  Manifest manifest;
  manifest.step = get_int(root, "step", where);
  manifest.block_bytes = get_int(root, "block_bytes", where);
  manifest.config_yaml = get_string(root, "config", where);
  for (const auto& [name, file] : get_object(root, "files", where).items())
    manifest.files[name] = {get_int(file, "bytes", where),
                            checksum_of(member(file, "structure_xxh3", where), "structure_xxh3", where)};
  for (const auto& [name, tensor] : get_object(root, "tensors", where).items())
    manifest.tensors[name] = tensor_from_json(name, tensor, where);
  manifest.state = std::move(root["state"]);
  validate(manifest, where);
  return manifest;
}

Manifest read_manifest(const std::filesystem::path& folder) {
  const File file = File::open_to_read((folder / kManifestName).string());
  const std::uint64_t bytes = file.size();
  require(bytes <= kMaxManifestBytes, "{} has {} bytes; a manifest has at most {}", file.path(), bytes,
          kMaxManifestBytes);
  std::string text(bytes, '\0');
  file.read_at(0, text.data(), text.size());
  return parse_manifest(text, file.path());
}

json piece_list(const std::string& file, const StoredFile& stored, const std::map<std::string, StoredTensor>& tensors) {
  return {{"file", file},
          {"bytes", stored.bytes},
          {"structure_xxh3", hex(stored.structure_checksum)},
          {"tensors", tensors_to_json(tensors)}};
}

void merge_piece_list(Manifest& manifest, const json& list, const std::string& where) {
  const std::string& file = get_string(list, "file", where);
  const StoredFile stored{get_int(list, "bytes", where),
                          checksum_of(member(list, "structure_xxh3", where), "structure_xxh3", where)};
  require(manifest.files.emplace(file, stored).second, "{}: two ranks wrote {}", where, file);
  for (const auto& [name, value] : get_object(list, "tensors", where).items()) {
    StoredTensor part = tensor_from_json(name, value, where);
    const auto [known, fresh] = manifest.tensors.try_emplace(name, part);
    if (fresh) continue;
    require(known->second.tensor.dtype == part.tensor.dtype && known->second.tensor.shape == part.tensor.shape,
            "{}: two ranks disagree about the dtype or shape of tensor '{}'", where, name);
    std::move(part.pieces.begin(), part.pieces.end(), std::back_inserter(known->second.pieces));
  }
}

std::string rank_file_name(int rank) {
  return fmt::format("rank_{:05}.h5", rank);
}
std::string step_folder_name(std::int64_t step) {
  return fmt::format("step_{:08}", step);
}
std::string temporary_name(std::int64_t step) {
  return fmt::format(".step_{:08}.tmp", step);
}
std::string aside_name(std::int64_t step) {
  return fmt::format(".step_{:08}.old", step);
}

}  // namespace sfa::checkpoint

namespace sfa {

std::int64_t CheckpointTensor::numel() const {
  const std::int64_t count = checkpoint::checked_numel(shape, dtype);
  require(count >= 0, "internal error: tensor '{}' has an impossible shape", name);
  return count;
}

}  // namespace sfa
