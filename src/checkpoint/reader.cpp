// Reading a checkpoint. The manifest says at which byte each piece lies; the data are read with pread and checked block
// by block, HDF5 is not involved. So its global lock is free for the data loader, and a file with damaged HDF5
// structures cannot lead the library astray: verify() compares their checksum, and the tensors themselves do not depend
// on them.
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "core/error.h"
#include "core/file.h"

namespace sfa {
namespace {
using namespace checkpoint;
namespace fs = std::filesystem;

// Files are kept open up to this many, so that a checkpoint pruned while it is read can be read to its end.
constexpr std::size_t kMaxOpenFiles = 256;

std::string describe(const CheckpointTensor& tensor) {
  return fmt::format("[{}] {}", fmt::join(tensor.shape, ", "), name_of(tensor.dtype));
}
}  // namespace

struct CheckpointReader::Impl {
  fs::path folder;
  Manifest manifest;
  std::map<std::string, CheckpointTensor> tensors;
  std::map<std::string, File> open_files;
  std::map<const Piece*, std::vector<bool>> checked;  // a flag a block
  std::vector<char> scratch;

  explicit Impl(fs::path path) : folder(std::move(path)) {
    std::error_code error;
    const fs::file_status status = fs::status(folder, error);
    require(fs::exists(status), "there is no checkpoint {}", folder.string());
    require(fs::is_directory(status), "{} is no checkpoint: a checkpoint is a folder with a {}", folder.string(),
            kManifestName);
    require(fs::exists(folder / kManifestName, error) || error,
            "{} has no {}: it is an unfinished checkpoint, or none at all", folder.string(), kManifestName);
    manifest = read_manifest(folder);
    for (const auto& [name, stored] : manifest.files) {
      File file = open_checked(name, stored.bytes);
      if (open_files.size() < kMaxOpenFiles) open_files.emplace(name, std::move(file));
    }
    for (const auto& [name, stored] : manifest.tensors) {
      tensors.emplace(name, stored.tensor);
      for (const Piece& piece : stored.pieces) checked[&piece].resize(piece.checksums.size());
    }
  }

  [[nodiscard]] File open_checked(const std::string& name, std::int64_t expected) const {
    File file = File::open_to_read((folder / name).string());
    const auto bytes = static_cast<std::int64_t>(file.size());
    require(bytes == expected, "{} has {} bytes, its manifest says {}: the checkpoint is {}", file.path(), bytes,
            expected, bytes < expected ? "truncated" : "damaged");
    return file;
  }

  [[nodiscard]] const StoredTensor& find(const std::string& name) const {
    const auto found = manifest.tensors.find(name);
    require(found != manifest.tensors.end(), "checkpoint {} holds no tensor '{}'", folder.string(), name);
    return found->second;
  }

  // Bytes [begin, end) of a piece into `out`; every block touched is checked the first time.
  void read_piece(const StoredTensor& stored, const Piece& piece, std::int64_t begin, std::int64_t end, char* out) {
    File reopened;
    const auto open = open_files.find(piece.file);
    if (open == open_files.end()) reopened = open_checked(piece.file, manifest.files.at(piece.file).bytes);
    const File& file = open == open_files.end() ? reopened : open->second;
    const auto element = static_cast<std::int64_t>(size_of(stored.tensor.dtype));
    const std::int64_t piece_bytes = piece.count * element;
    std::vector<bool>& flags = checked.at(&piece);
    while (begin < end) {
      const std::int64_t index = begin / manifest.block_bytes;
      const std::int64_t block_begin = index * manifest.block_bytes;
      const std::int64_t block_end = std::min(block_begin + manifest.block_bytes, piece_bytes);
      const std::int64_t stop = std::min(end, block_end);
      const auto wanted = static_cast<std::size_t>(stop - begin);
      const auto block_bytes = static_cast<std::size_t>(block_end - block_begin);
      if (flags[static_cast<std::size_t>(index)]) {
        file.read_at(piece.offset + begin, out, wanted);
      } else {
        char* block = out;
        if (wanted != block_bytes) {
          if (scratch.size() < block_bytes) scratch.resize(block_bytes);
          block = scratch.data();
        }
        file.read_at(piece.offset + block_begin, block, block_bytes);
        require(XXH3_64bits(block, block_bytes) == piece.checksums[static_cast<std::size_t>(index)],
                "{} is damaged: elements [{}, {}) of tensor '{}' do not match their checksum; resume from another "
                "checkpoint",
                file.path(), piece.begin + block_begin / element, piece.begin + block_end / element,
                stored.tensor.name);
        flags[static_cast<std::size_t>(index)] = true;
        if (block != out) std::memcpy(out, block + (begin - block_begin), wanted);
      }
      out += wanted;
      begin = stop;
    }
  }

  // The bytes between the pieces are HDF5's own: superblock, groups, object headers, padding.
  void verify_structure(const std::string& name, const StoredFile& stored) const {
    std::vector<std::pair<std::int64_t, std::int64_t>> pieces;
    for (const auto& [tensor, entry] : manifest.tensors)
      for (const Piece& piece : entry.pieces)
        if (piece.file == name)
          pieces.emplace_back(piece.offset,
                              piece.offset + piece.count * static_cast<std::int64_t>(size_of(entry.tensor.dtype)));
    std::sort(pieces.begin(), pieces.end());
    pieces.emplace_back(stored.bytes, stored.bytes);
    const File file = open_checked(name, stored.bytes);
    const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash(XXH3_createState(), XXH3_freeState);
    XXH3_64bits_reset(hash.get());
    std::vector<char> buffer(1 << 20);
    std::int64_t at = 0;
    for (const auto& [begin, end] : pieces) {
      while (at < begin) {
        const std::size_t bytes = std::min(buffer.size(), static_cast<std::size_t>(begin - at));
        file.read_at(at, buffer.data(), bytes);
        XXH3_64bits_update(hash.get(), buffer.data(), bytes);
        at += static_cast<std::int64_t>(bytes);
      }
      at = end;
    }
    require(XXH3_64bits_digest(hash.get()) == stored.structure_checksum,
            "{} is damaged: its HDF5 structures do not match their checksum", file.path());
  }
};

CheckpointReader::CheckpointReader(fs::path folder) : impl_(std::make_unique<Impl>(std::move(folder))) {}
CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;

const fs::path& CheckpointReader::folder() const {
  return impl_->folder;
}
std::int64_t CheckpointReader::step() const {
  return impl_->manifest.step;
}
const nlohmann::json& CheckpointReader::state() const {
  return impl_->manifest.state;
}
const std::string& CheckpointReader::config_yaml() const {
  return impl_->manifest.config_yaml;
}
const std::map<std::string, CheckpointTensor>& CheckpointReader::tensors() const {
  return impl_->tensors;
}

std::int64_t CheckpointReader::bytes() const {
  std::int64_t total = 0;
  for (const auto& [name, stored] : impl_->manifest.files) total += stored.bytes;
  return total;
}

void CheckpointReader::expect(const CheckpointTensor& tensor) const {
  const CheckpointTensor& stored = impl_->find(tensor.name).tensor;
  require(stored.dtype == tensor.dtype && stored.shape == tensor.shape,
          "tensor '{}' is {} in checkpoint {}, but {} in this model", tensor.name, describe(stored),
          impl_->folder.string(), describe(tensor));
}

void CheckpointReader::read(const std::string& name, std::int64_t begin, std::int64_t count, void* out) {
  const StoredTensor& stored = impl_->find(name);
  const std::int64_t numel = stored.tensor.numel();
  require(begin >= 0 && count >= 0 && begin <= numel && count <= numel - begin,
          "elements [{}, {} + {}) of tensor '{}' were asked for, checkpoint {} holds {}", begin, begin, count, name,
          impl_->folder.string(), numel);
  const auto element = static_cast<std::int64_t>(size_of(stored.tensor.dtype));
  char* to = static_cast<char*>(out);
  const std::int64_t end = begin + count;
  auto piece = std::partition_point(stored.pieces.begin(), stored.pieces.end(),
                                    [&](const Piece& p) { return p.begin + p.count <= begin; });
  for (; piece != stored.pieces.end() && begin < end; ++piece) {
    const std::int64_t stop = std::min(end, piece->begin + piece->count);
    impl_->read_piece(stored, *piece, (begin - piece->begin) * element, (stop - piece->begin) * element, to);
    to += (stop - begin) * element;
    begin = stop;
  }
}

void CheckpointReader::verify() {
  for (const auto& [name, stored] : impl_->manifest.files) impl_->verify_structure(name, stored);
  std::vector<char> buffer(static_cast<std::size_t>(impl_->manifest.block_bytes));
  for (const auto& [name, stored] : impl_->manifest.tensors)
    for (const Piece& piece : stored.pieces) {
      impl_->checked.at(&piece).assign(piece.checksums.size(), false);
      const std::int64_t bytes = piece.count * static_cast<std::int64_t>(size_of(stored.tensor.dtype));
      for (std::int64_t at = 0; at < bytes; at += impl_->manifest.block_bytes)
        impl_->read_piece(stored, piece, at, std::min(bytes, at + impl_->manifest.block_bytes), buffer.data());
    }
}

}  // namespace sfa
