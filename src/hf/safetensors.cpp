#include "hf/safetensors.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"

namespace sfa::hf {
namespace {
using nlohmann::json;
static_assert(std::endian::native == std::endian::little, "tensors are read as they lie in the file");

constexpr std::uint64_t kMostHeaderBytes = 100'000'000;  // as the format's own library has it
constexpr std::uint64_t kMostIndexBytes = 256'000'000;
constexpr std::size_t kMostDimensions = 16;
constexpr int kMostDepth = 4;

// Names and messages of others are shown without control characters, and not at any length.
std::string shown(std::string_view text) {
  std::string out(text.substr(0, 120));
  for (char& c : out)
    if (static_cast<unsigned char>(c) < ' ' || c == 127) c = '?';
  return out + (text.size() > 120 ? "..." : "");
}

// JSON with each key of an object given once, and not deeply nested.
json parse_strictly(std::string_view text, const std::string& where) {
  std::vector<std::set<std::string>> keys(kMostDepth + 2);
  try {
    return json::parse(text, [&](int depth, json::parse_event_t event, json& parsed) {
      require(depth <= kMostDepth, "{}: is nested deeper than {} levels", where, kMostDepth);
      std::set<std::string>& level = keys[static_cast<std::size_t>(depth) + 1];
      if (event == json::parse_event_t::object_start) level.clear();
      // A key stands one level below the object that it belongs to.
      if (event == json::parse_event_t::key)
        require(keys[static_cast<std::size_t>(depth)].insert(parsed.get<std::string>()).second,
                "{}: '{}' is there twice", where, shown(parsed.get<std::string>()));
      return true;
    });
  } catch (const json::parse_error& error) {
    fail("{}: is not valid JSON (at byte {})", where, error.byte);
  } catch (const json::exception&) {
    fail("{}: holds a number that is out of range", where);
  }
}

std::uint64_t unsigned_of(const json& value, const std::string& where, const char* what) {
  require(value.is_number_unsigned(), "{}: {} is not a whole number from 0 to 2^64", where, what);
  return value.get<std::uint64_t>();
}

SafeTensor tensor_of(const json& value, std::uint64_t data_bytes, const std::string& where) {
  require(value.is_object() && value.size() == 3 && value.contains("dtype") && value.contains("shape") &&
              value.contains("data_offsets"),
          "{}: has not exactly dtype, shape and data_offsets", where);
  SafeTensor t;
  require(value["dtype"].is_string(), "{}: dtype is not a word", where);
  t.dtype = value["dtype"].get<std::string>();
  const std::size_t size = size_of_dtype(t.dtype);
  require(size > 0, "{}: the dtype '{}' is not known", where, shown(t.dtype));
  const json& shape = value["shape"];
  require(shape.is_array() && shape.size() <= kMostDimensions, "{}: shape is not a list of at most {} numbers", where,
          kMostDimensions);
  std::uint64_t bytes = size;
  for (const json& dim : shape) {
    const std::uint64_t n = unsigned_of(dim, where, "a dimension");
    require(n == 0 || bytes <= data_bytes / n, "{}: the shape asks for more bytes than the file has", where);
    bytes *= n;
    t.shape.push_back(static_cast<std::int64_t>(n));
  }
  const json& offsets = value["data_offsets"];
  require(offsets.is_array() && offsets.size() == 2, "{}: data_offsets are not two numbers", where);
  t.begin = unsigned_of(offsets[0], where, "an offset");
  t.end = unsigned_of(offsets[1], where, "an offset");
  require(t.begin <= t.end && t.end <= data_bytes, "{}: its bytes [{}, {}) lie outside of the {} bytes of data", where,
          t.begin, t.end, data_bytes);
  require(t.end - t.begin == bytes, "{}: has {} bytes, its shape and dtype make {}", where, t.end - t.begin, bytes);
  return t;
}

void check_layout(const SafeTensors& tensors, std::uint64_t data_bytes, const std::string& where) {
  std::vector<const SafeTensors::value_type*> order;
  for (const auto& entry : tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::uint64_t end = 0;
  for (const auto* entry : order) {
    require(entry->second.begin >= end, "{}: the bytes of the tensor '{}' overlap those of another", where,
            shown(entry->first));
    require(entry->second.begin == end, "{}: {} bytes before the tensor '{}' belong to none", where,
            entry->second.begin - end, shown(entry->first));
    end = entry->second.end;
  }
  require(end == data_bytes, "{}: the last {} bytes belong to no tensor", where, data_bytes - end);
}

}  // namespace

std::size_t size_of_dtype(std::string_view dtype) {
  struct Row {
    std::string_view name;
    std::size_t bytes;
  };
  static constexpr std::array kRows{Row{"F32", 4},  Row{"BF16", 2},    Row{"F16", 2},    Row{"F64", 8},
                                    Row{"I64", 8},  Row{"I32", 4},     Row{"I16", 2},    Row{"I8", 1},
                                    Row{"U64", 8},  Row{"U32", 4},     Row{"U16", 2},    Row{"U8", 1},
                                    Row{"BOOL", 1}, Row{"F8_E4M3", 1}, Row{"F8_E5M2", 1}};
  for (const Row& row : kRows)
    if (row.name == dtype) return row.bytes;
  return 0;
}

SafeTensors parse_safetensors_header(std::string_view text, std::uint64_t data_bytes, const std::string& where,
                                     std::map<std::string, std::string>* metadata) {
  require(text.starts_with('{'), "{}: the header is not a JSON object", where);
  const json root = parse_strictly(text, where + ": the header");
  SafeTensors tensors;
  for (const auto& [name, value] : root.items()) {
    if (name == "__metadata__") {
      require(value.is_object(), "{}: __metadata__ is not an object", where);
      for (const auto& [key, word] : value.items()) {
        require(word.is_string(), "{}: __metadata__ holds something other than words", where);
        if (metadata) metadata->emplace(key, word.get<std::string>());
      }
      continue;
    }
    tensors.emplace(name, tensor_of(value, data_bytes, fmt::format("{}: the tensor '{}'", where, shown(name))));
  }
  check_layout(tensors, data_bytes, where);
  return tensors;
}

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
  const File file = File::open_to_read(path);
  const std::uint64_t size = file.size();
  std::uint64_t header = 0;
  require(size >= sizeof header, "{}: has {} bytes; a safetensors file begins with the 8-byte length of its header",
          path, size);
  file.read_at(0, &header, sizeof header);
  require(header <= kMostHeaderBytes, "{}: is no safetensors file, or damaged: a header of {} bytes is not allowed",
          path, header);
  require(header <= size - sizeof header, "{}: is truncated: the header has {} bytes, the file {}", path, header, size);
  std::string text(header, '\0');
  file.read_at(sizeof header, text.data(), text.size());
  data_ = sizeof header + header;
  tensors_ = parse_safetensors_header(text, size - data_, path, &metadata_);
  void* map = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
  if (map == MAP_FAILED) fail("could not map {} into memory: {}", path, system_reason(errno));
  ::madvise(map, size, MADV_SEQUENTIAL);
  map_ = static_cast<const std::byte*>(map);
  size_ = size;
}

SafetensorsFile::~SafetensorsFile() {
  if (map_) ::munmap(const_cast<std::byte*>(map_), size_);
}

std::span<const std::byte> SafetensorsFile::bytes(const SafeTensor& tensor) const {
  return {map_ + data_ + tensor.begin, tensor.end - tensor.begin};
}

SafetensorsSet::SafetensorsSet(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  fs::path lone = path;
  if (fs::is_directory(path)) {
    const fs::path index = path / "model.safetensors.index.json";
    if (fs::exists(index)) {
      open_index(index);
      return;
    }
    lone = path / "model.safetensors";
    const bool pickled = fs::exists(path / "pytorch_model.bin") || fs::exists(path / "pytorch_model.bin.index.json");
    require(fs::exists(lone) || !pickled,
            "{}: the weights are a pickle (pytorch_model.bin), which is not read; save them as safetensors",
            path.string());
    require(fs::exists(lone), "{}: has neither model.safetensors nor model.safetensors.index.json", path.string());
  }
  files_.push_back(std::make_unique<SafetensorsFile>(lone.string()));
  for (const auto& [name, tensor] : files_.back()->tensors()) tensors_[name] = {files_.back().get(), &tensor};
}

void SafetensorsSet::open_index(const std::filesystem::path& index) {
  const File file = File::open_to_read(index.string());
  require(file.size() <= kMostIndexBytes, "{}: an index of {} bytes is not allowed", index.string(), file.size());
  std::string text(file.size(), '\0');
  file.read_at(0, text.data(), text.size());
  const json root = parse_strictly(text, index.string());
  const auto map = root.is_object() ? root.find("weight_map") : root.end();
  require(map != root.end() && map->is_object() && !map->empty(), "{}: has no weight_map of tensors and files",
          index.string());
  std::map<std::string, const SafetensorsFile*> open;
  for (const auto& [name, value] : map->items()) {
    const std::string shard = value.is_string() ? value.get<std::string>() : "";
    const bool plain = !shard.empty() && shard != ".." && shard != "." && shard.find('/') == std::string::npos &&
                       shard.find('\0') == std::string::npos;
    require(plain, "{}: the tensor '{}' is not in a file of the same folder", index.string(), shown(name));
    const SafetensorsFile*& there = open[shard];
    if (!there) {
      const std::filesystem::path path = index.parent_path() / shard;
      require(std::filesystem::exists(path), "{}: the shard {} is missing", index.string(), shown(shard));
      files_.push_back(std::make_unique<SafetensorsFile>(path.string()));
      there = files_.back().get();
    }
    const auto found = there->tensors().find(name);
    require(found != there->tensors().end(), "{}: the tensor '{}' is not in {}, where it should be", index.string(),
            shown(name), shown(shard));
    tensors_[name] = {there, &found->second};
  }
}

const SafetensorsSet::Entry* SafetensorsSet::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

}  // namespace sfa::hf
