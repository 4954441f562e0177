// safetensors, the container of Hugging Face checkpoints (github.com/huggingface/safetensors, "Format"):
//   u64 little-endian N | N bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__":
//   {}} | the tensors' bytes, row-major, without gap or overlap; offsets count from the end of the header
// A checkpoint is one such file, or shards with an index {"weight_map": {"name": "file"}}. Nothing a header says is
// believed before it is checked; whatever is wrong is an Error with one sentence that names file and tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"

namespace sfa::hf {

/// A tensor as a header describes it.
struct SafeTensor {
  std::string dtype;  // "F32", "BF16", "F16", "I64", ...
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  // bytes, from the end of the header
};
using SafeTensors = std::map<std::string, SafeTensor, std::less<>>;

/// Bytes of an element of this dtype; 0 when the format has no such.
std::size_t size_of_dtype(std::string_view dtype);

/// Checks and reads a header's JSON text. `data_bytes` follow it in the file; `where` opens the sentence of an Error.
/// `metadata` takes "__metadata__".
SafeTensors parse_safetensors_header(std::string_view text, std::uint64_t data_bytes, const std::string& where,
                                     std::map<std::string, std::string>* metadata = nullptr);

/// One file, mapped into memory. Not to be changed by anybody while it is read.
class SafetensorsFile {
 public:
  /// Throws Error when the file is missing, truncated or says what cannot be.
  explicit SafetensorsFile(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const SafeTensors& tensors() const { return tensors_; }
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// The tensor's bytes (of any alignment), valid while the file is open.
  [[nodiscard]] std::span<const std::byte> bytes(const SafeTensor& tensor) const;

 private:
  std::string path_;
  SafeTensors tensors_;
  std::map<std::string, std::string> metadata_;
  const std::byte* map_ = nullptr;
  std::size_t size_ = 0;
  std::uint64_t data_ = 0;  // where the tensors' bytes begin
};

/// All tensors of a checkpoint, whichever files they lie in.
class SafetensorsSet {
 public:
  struct Entry {
    const SafetensorsFile* file = nullptr;
    const SafeTensor* tensor = nullptr;
    [[nodiscard]] std::span<const std::byte> bytes() const { return file->bytes(*tensor); }
  };

  /// `path` is a *.safetensors file, or a folder with model.safetensors.index.json or model.safetensors.
  explicit SafetensorsSet(const std::filesystem::path& path);

  [[nodiscard]] const std::map<std::string, Entry, std::less<>>& tensors() const { return tensors_; }
  /// Null when there is none of this name.
  [[nodiscard]] const Entry* find(std::string_view name) const;

 private:
  void open_index(const std::filesystem::path& index);

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry, std::less<>> tensors_;
};

/// Writes one file: the header first, then the tensors in the order given. What is written stands under a temporary
/// name until finish() has synced and renamed it.
class SafetensorsWriter {
 public:
  struct Planned {
    std::string name, dtype;
    std::vector<std::int64_t> shape;
    [[nodiscard]] std::uint64_t bytes() const;
  };
  SafetensorsWriter(std::string path, std::vector<Planned> tensors, const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  /// The bytes of the next tensor, which must be `name`.
  void add(const std::string& name, std::span<const std::byte> bytes);
  void finish();

 private:
  std::string path_, temporary_;
  std::vector<Planned> tensors_;
  File file_;
  std::size_t next_ = 0;
  std::uint64_t offset_ = 0;
  bool finished_ = false;
};

}  // namespace sfa::hf
