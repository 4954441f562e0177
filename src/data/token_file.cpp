#include "data/token_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <functional>

#include "core/error.h"
#include "core/hdf5.h"
#include "data/token_format.h"

namespace sfa {
namespace {
using token_format::hex_checksum;

constexpr std::array<unsigned char, 8> kHdf5Signature{0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};

hdf5::Handle open_dataset(hid_t file, const std::string& path, const char* name) {
  hdf5::Handle dataset(H5Dopen2(file, name, H5P_DEFAULT), H5Dclose);
  require(dataset.valid(), "{} is not a whole token file: the dataset {} is missing or damaged ({})", path, name,
          hdf5::last_error());
  return dataset;
}

// All elements of a small one-dimensional dataset. The length is held against the file's size first, so that a damaged
// length cannot ask for more memory than there is file.
template <class T>
std::vector<T> read_small(hid_t file, const std::string& path, const char* name, hid_t type) {
  const hdf5::Handle dataset = open_dataset(file, path, name);
  const std::uint64_t count = hdf5::dataset_length(dataset.get(), path + ":" + name);
  require(count <= std::filesystem::file_size(path) / sizeof(T), "{} is damaged: the dataset {} claims {} elements",
          path, name, count);
  std::vector<T> values(count);
  require(count == 0 || H5Dread(dataset.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) >= 0,
          "{} is damaged: the dataset {} cannot be read ({})", path, name, hdf5::last_error());
  return values;
}

std::vector<std::string> read_names(hid_t file, const std::string& path) {
  const hdf5::Handle dataset = open_dataset(file, path, "/source_names");
  const std::uint64_t count = hdf5::dataset_length(dataset.get(), path + ":/source_names");
  const hdf5::Handle type(H5Dget_type(dataset.get()), H5Tclose);
  const std::size_t width = H5Tget_size(type.get());
  require(H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) == 0 && width > 0 &&
              count <= std::filesystem::file_size(path) / width,
          "{} is damaged: the dataset /source_names is not a list of strings of fixed length", path);
  std::string all(count * width, '\0');
  require(count == 0 || H5Dread(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, all.data()) >= 0,
          "{} is damaged: the dataset /source_names cannot be read ({})", path, hdf5::last_error());
  std::vector<std::string> names;
  for (std::uint64_t i = 0; i < count; ++i) {
    std::string name = all.substr(i * width, width);
    names.push_back(name.substr(0, name.find('\0')));
  }
  return names;
}

std::int64_t need_int(hid_t file, const std::string& path, const char* name) {
  const auto value = hdf5::read_int(file, name);
  require(value.has_value(), "{} is not a whole token file: the attribute {} is missing or damaged", path, name);
  return *value;
}

std::string need_string(hid_t file, const std::string& path, const char* name) {
  const auto value = hdf5::read_string(file, name);
  require(value.has_value(), "{} is not a whole token file: the attribute {} is missing or damaged", path, name);
  return *value;
}

void check_signature(const File& file) {
  const std::string& path = file.path();
  require(file.size() > 0, "{} is empty; a token file is written by: sfa data tokenize", path);
  std::array<unsigned char, 8> head{};
  file.read_at(0, head.data(), std::min<std::uint64_t>(head.size(), file.size()));
  require(head == kHdf5Signature,
          "{} is not an HDF5 file; token files are made from text with: sfa data tokenize --output OUT.h5 {}", path,
          path);
}

void check_consistent(const TokenFileInfo& info, const File& file, std::uint64_t offset, std::size_t num_checksums) {
  const auto bytes = static_cast<std::uint64_t>(info.total_tokens * info.token_bytes);
  require(info.vocab_size >= 1 && info.vocab_size <= (std::int64_t{1} << 31) && info.end_of_text >= 0 &&
              info.end_of_text < info.vocab_size && info.val_start >= 0 && info.val_start <= info.total_tokens &&
              info.block_bytes >= info.token_bytes && info.block_bytes <= (1 << 30) &&
              info.block_bytes % info.token_bytes == 0,
          "{} is damaged: its attributes contradict each other", info.path);
  require(file.size() >= offset && file.size() - offset >= bytes,
          "{} is truncated: {} tokens from byte {} need {} bytes, the file has {}", info.path, info.total_tokens,
          offset, offset + bytes, file.size());
  const auto block = static_cast<std::uint64_t>(info.block_bytes);
  require(num_checksums == (bytes + block - 1) / block, "{} is damaged: it has {} block checksums for {} blocks",
          info.path, num_checksums, (bytes + block - 1) / block);
}
}  // namespace

const char* name_of(Split split) {
  switch (split) {
    case Split::train:
      return "train";
    case Split::val:
      return "val";
    case Split::all:
      return "all";
  }
  return "?";
}

TokenFile::TokenFile(const std::string& path) : file_(File::open_to_read(path)) {
  info_.path = path;
  if (open_llmc()) return;
  check_signature(file_);
  open_hdf5();
  verified_ = std::make_unique<std::atomic<bool>[]>(checksums_.size());
}

void TokenFile::open_hdf5() {
  const std::string& path = info_.path;
  hdf5::Lock lock;
  hdf5::Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  require(file.valid(), "{} is truncated or damaged: HDF5 cannot open it ({})", path, hdf5::last_error());
  const hid_t id = file.get();

  const auto format = hdf5::read_string(id, "format");
  require(format == token_format::kFormat,
          "{} is an HDF5 file, but not a token file: its attribute 'format' is {}, '{}' was expected", path,
          format ? "'" + *format + "'" : "missing", token_format::kFormat);
  const std::int64_t version = need_int(id, path, "format_version");
  require(version == token_format::kVersion,
          "{} is a token file of format version {}; this program reads version {}: tokenize the text again, or use the "
          "program that wrote it ({})",
          path, version, token_format::kVersion, hdf5::read_string(id, "tool_version").value_or("unknown"));
  info_.tool_version = need_string(id, path, "tool_version");
  info_.tokenizer_name = need_string(id, path, "tokenizer_name");
  info_.tokenizer_hash = need_string(id, path, "tokenizer_hash");
  info_.tokenizer_path = hdf5::read_string(id, "tokenizer_path").value_or("");
  info_.source_hash = need_string(id, path, "source_hash");
  info_.vocab_size = need_int(id, path, "vocab_size");
  info_.end_of_text = need_int(id, path, "end_of_text");
  info_.val_start = need_int(id, path, "val_start");
  info_.num_documents = need_int(id, path, "num_documents");
  info_.block_bytes = need_int(id, path, "block_bytes");
  info_.source_names = read_names(id, path);

  const hdf5::Handle tokens = open_dataset(id, path, "/tokens");
  const hdf5::Handle type(H5Dget_type(tokens.get()), H5Tclose);
  const bool is_u16 = H5Tequal(type.get(), H5T_STD_U16LE) > 0, is_u32 = H5Tequal(type.get(), H5T_STD_U32LE) > 0;
  require(is_u16 || is_u32, "{}: the dataset /tokens must hold little-endian uint16 or uint32", path);
  info_.token_bytes = is_u16 ? 2 : 4;
  const std::uint64_t count = hdf5::dataset_length(tokens.get(), path + ":/tokens");
  require(count > 0, "{} holds no tokens", path);
  require(count <= file_.size() / static_cast<std::uint64_t>(info_.token_bytes),
          "{} is truncated: it should hold {} tokens of {} bytes, but has only {} bytes", path, count,
          info_.token_bytes, file_.size());
  info_.total_tokens = static_cast<std::int64_t>(count);
  const auto offset = hdf5::dataset_offset(tokens.get());
  require(offset.has_value(),
          "{}: the dataset /tokens is not contiguous (chunked or compressed), so it cannot be read past HDF5; write it "
          "with: sfa data tokenize",
          path);
  offset_ = *offset;

  checksums_ = read_small<std::uint64_t>(id, path, "/block_checksums", H5T_NATIVE_UINT64);
  const token_format::Digests digests{hex_checksum(checksums_.data(), checksums_.size() * sizeof(std::uint64_t)),
                                      need_string(id, path, "document_starts_checksum"),
                                      need_string(id, path, "token_text_checksum")};
  document_starts_hash_ = digests.document_starts;
  token_text_hash_ = digests.token_text;
  require(need_string(id, path, "metadata_checksum") == token_format::metadata_checksum(info_, digests),
          "{} is damaged: its attributes do not match their checksum", path);
  check_consistent(info_, file_, offset_, checksums_.size());
  info_.has_answers = H5Aexists(id, "answer_ranges_checksum") > 0 || H5Lexists(id, "/answer_ranges", H5P_DEFAULT) > 0;
  if (info_.has_answers) answers_hash_ = need_string(id, path, "answer_ranges_checksum");
}

std::pair<std::int64_t, std::int64_t> TokenFile::range(Split split) const {
  if (split == Split::train) return {0, info_.val_start};
  if (split == Split::all) return {0, info_.total_tokens};
  require(info_.val_start < info_.total_tokens,
          "{} has no validation part; tokenize with --val-fraction, or name another file with data.val", info_.path);
  return {info_.val_start, info_.total_tokens};
}

void TokenFile::check_block(std::int64_t block, std::vector<char>& buffer) const {
  const std::int64_t begin = block * info_.block_bytes;
  const std::int64_t bytes = std::min(info_.block_bytes, token_area_bytes() - begin);
  buffer.resize(static_cast<std::size_t>(bytes));
  file_.read_at(offset_ + static_cast<std::uint64_t>(begin), buffer.data(), buffer.size());
  const std::uint64_t found = token_format::checksum(buffer.data(), buffer.size());
  const std::uint64_t expected = checksums_[static_cast<std::size_t>(block)];
  require(
      found == expected,
      "{} is damaged: block {} of {} (bytes {} to {}) has checksum {:016x}, {:016x} was recorded; tokenize the text "
      "again",
      info_.path, block, checksums_.size(), offset_ + static_cast<std::uint64_t>(begin),
      offset_ + static_cast<std::uint64_t>(begin + bytes) - 1, found, expected);
  verified_[static_cast<std::size_t>(block)].store(true, std::memory_order_release);
}

void TokenFile::read(std::int64_t begin, std::span<std::int32_t> out) const {
  const auto count = static_cast<std::int64_t>(out.size());
  require(begin >= 0 && begin + count <= info_.total_tokens, "internal error: tokens [{}, {}) of {} with {} tokens",
          begin, begin + count, info_.path, info_.total_tokens);
  if (count == 0) return;
  thread_local std::vector<char> buffer;
  const std::int64_t first_byte = begin * info_.token_bytes, last_byte = (begin + count) * info_.token_bytes - 1;
  if (info_.block_bytes > 0)
    for (std::int64_t b = first_byte / info_.block_bytes; b <= last_byte / info_.block_bytes; ++b)
      if (!verified_[static_cast<std::size_t>(b)].load(std::memory_order_acquire)) check_block(b, buffer);
  buffer.resize(static_cast<std::size_t>(last_byte - first_byte + 1));
  file_.read_at(offset_ + static_cast<std::uint64_t>(first_byte), buffer.data(), buffer.size());

  std::uint32_t largest = 0;
  const auto widen = [&]<class T>(T) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      T id;
      std::memcpy(&id, buffer.data() + i * sizeof(T), sizeof(T));
      largest = std::max<std::uint32_t>(largest, id);
      out[i] = static_cast<std::int32_t>(id);
    }
  };
  if (info_.token_bytes == 2)
    widen(std::uint16_t{});
  else
    widen(std::uint32_t{});
  require(largest < info_.vocab_size, "{} holds the token id {} near position {}, but its vocabulary has {} ids",
          info_.path, largest, begin, info_.vocab_size);
}

std::vector<std::int64_t> TokenFile::document_starts() const {
  if (info_.num_documents < 0) return scan_document_starts();
  hdf5::Lock lock;
  const hdf5::Handle file = hdf5::open_file(info_.path);
  auto starts = read_small<std::int64_t>(file.get(), info_.path, "/document_starts", H5T_NATIVE_INT64);
  require(hex_checksum(starts.data(), starts.size() * sizeof(starts[0])) == document_starts_hash_,
          "{} is damaged: the document starts do not match their checksum", info_.path);
  require(static_cast<std::int64_t>(starts.size()) == info_.num_documents &&
              std::is_sorted(starts.begin(), starts.end()) &&
              (starts.empty() || (starts.front() >= 0 && starts.back() < info_.total_tokens)),
          "{} is damaged: the document starts are not positions in the file in ascending order", info_.path);
  return starts;
}

std::vector<std::int64_t> TokenFile::answers() const {
  if (!info_.has_answers) return {};
  hdf5::Lock lock;
  const hdf5::Handle file = hdf5::open_file(info_.path);
  auto bounds = read_small<std::int64_t>(file.get(), info_.path, "/answer_ranges", H5T_NATIVE_INT64);
  require(hex_checksum(bounds.data(), bounds.size() * sizeof(bounds[0])) == answers_hash_,
          "{} is damaged: the ranges of answers do not match their checksum", info_.path);
  const bool ascending = std::adjacent_find(bounds.begin(), bounds.end(), std::greater_equal<>()) == bounds.end();
  require(bounds.size() % 2 == 0 && ascending &&
              (bounds.empty() || (bounds.front() >= 0 && bounds.back() <= info_.total_tokens)),
          "{} is damaged: the ranges of answers are not ranges of positions in ascending order", info_.path);
  return bounds;
}

TokenFile::Vocabulary TokenFile::vocabulary() const {
  if (token_text_hash_.empty()) return {};
  hdf5::Lock lock;
  const hdf5::Handle file = hdf5::open_file(info_.path);
  Vocabulary vocabulary;
  vocabulary.offsets = read_small<std::uint32_t>(file.get(), info_.path, "/token_text_offsets", H5T_NATIVE_UINT32);
  const auto text = read_small<char>(file.get(), info_.path, "/token_text", H5T_NATIVE_UINT8);
  const auto& offsets = vocabulary.offsets;
  require(hex_checksum(text.data(), text.size(), token_format::checksum(offsets.data(), offsets.size() * 4)) ==
              token_text_hash_,
          "{} is damaged: the table of token texts does not match its checksum", info_.path);
  require(static_cast<std::int64_t>(offsets.size()) == info_.vocab_size + 1 && offsets.back() == text.size() &&
              std::is_sorted(offsets.begin(), offsets.end()),
          "{} is damaged: the table of token texts does not fit the vocabulary", info_.path);
  vocabulary.text.assign(text.begin(), text.end());
  return vocabulary;
}

void TokenFile::verify() const {
  std::vector<char> buffer;
  for (std::size_t block = 0; block < checksums_.size(); ++block) check_block(static_cast<std::int64_t>(block), buffer);
  std::vector<std::int32_t> tokens(1 << 16);  // and that every id is in the vocabulary
  for (std::int64_t at = 0; at < info_.total_tokens; at += static_cast<std::int64_t>(tokens.size())) {
    const auto left = static_cast<std::size_t>(info_.total_tokens - at);
    read(at, std::span(tokens).first(std::min(tokens.size(), left)));
  }
  (void)document_starts();
  (void)answers();
  (void)vocabulary();
}

}  // namespace sfa
