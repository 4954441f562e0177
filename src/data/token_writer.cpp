#include "data/token_writer.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "core/build_config.h"
#include "core/error.h"
#include "core/hdf5.h"
#include "data/token_format.h"

namespace sfa {
namespace {

// Removes a file that was not put in its place, whatever the reason.
class Remover {
 public:
  explicit Remover(std::string path) : path_(std::move(path)) { ::unlink(path_.c_str()); }
  Remover(const Remover&) = delete;
  Remover& operator=(const Remover&) = delete;
  ~Remover() { ::unlink(path_.c_str()); }

 private:
  std::string path_;
};

void write_names(hid_t file, const std::vector<std::string>& names) {
  std::size_t width = 1;
  for (const auto& name : names) width = std::max(width, name.size());
  std::string all(names.size() * width, '\0');
  for (std::size_t i = 0; i < names.size(); ++i) names[i].copy(all.data() + i * width, width);
  const hdf5::Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.get(), width);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  H5Tset_strpad(type.get(), H5T_STR_NULLPAD);
  hdf5::create_dataset(file, "/source_names", type.get(), names.size(), all.data());
}

void copy_bytes(const File& from, File& to, std::uint64_t offset, std::uint64_t bytes) {
  std::vector<char> buffer(static_cast<std::size_t>(std::min<std::uint64_t>(bytes, 8 << 20)));
  for (std::uint64_t done = 0; done < bytes;) {
    const auto part = static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), bytes - done));
    from.read_at(done, buffer.data(), part);
    to.write_at(offset + done, buffer.data(), part);
    done += part;
  }
}
}  // namespace

std::int64_t validation_start(std::int64_t total, double fraction, std::span<const std::int64_t> document_starts) {
  if (fraction <= 0.0) return total;
  const auto exact = static_cast<std::int64_t>(std::llround((1.0 - fraction) * static_cast<double>(total)));
  const std::int64_t reach = (total - exact) / 20;
  const auto after = std::lower_bound(document_starts.begin(), document_starts.end(), exact);
  std::int64_t best = exact, distance = reach + 1;
  for (auto candidate : {after, after == document_starts.begin() ? after : after - 1}) {
    if (candidate == document_starts.end() || *candidate == 0) continue;
    if (const std::int64_t away = std::abs(*candidate - exact); away < distance) {
      best = *candidate;
      distance = away;
    }
  }
  return std::clamp<std::int64_t>(best, std::min<std::int64_t>(1, total), total);
}

TokenWriter::TokenWriter(TokenWriterOptions options, const Tokenizer& tokenizer)
    : options_(std::move(options)), tokenizer_(tokenizer), token_bytes_(tokenizer.vocab_size() <= 65536 ? 2 : 4) {
  require(options_.val_fraction >= 0.0 && options_.val_fraction < 1.0,
          "the validation fraction must be at least 0 and below 1, not {}", options_.val_fraction);
  const std::filesystem::path path(options_.path);
  require(!path.filename().empty() && !std::filesystem::is_directory(path), "the output '{}' must name a file",
          options_.path);
  require(options_.force || !std::filesystem::exists(path), "{} exists already; give --force to replace it",
          options_.path);
  std::error_code problem;
  std::filesystem::create_directories(folder_of(options_.path), problem);
  require(!problem, "could not create the folder {}: {}", folder_of(options_.path), problem.message());
  raw_ = File::temporary_in(folder_of(options_.path));
  block_.reserve(token_format::kBlockBytes);
}

void TokenWriter::begin_document() {
  document_starts_.push_back(total_);
  const std::uint32_t id = tokenizer_.end_of_text();
  const bool behind_answer = !answer_bounds_.empty() && answer_bounds_.back() == total_;
  append({&id, 1}, options_.answers_end && behind_answer);
}

void TokenWriter::append(std::span<const std::uint32_t> ids, bool answer) {
  if (answer && !ids.empty()) {
    if (answer_bounds_.empty() || answer_bounds_.back() != total_)
      answer_bounds_.insert(answer_bounds_.end(), 2, total_);
    answer_bounds_.back() += static_cast<std::int64_t>(ids.size());
  }
  const auto width = static_cast<std::size_t>(token_bytes_);
  while (!ids.empty()) {
    const std::size_t room = (static_cast<std::size_t>(token_format::kBlockBytes) - block_.size()) / width;
    const std::size_t count = std::min(room, ids.size()), at = block_.size();
    block_.resize(at + count * width);
    for (std::size_t i = 0; i < count; ++i)  // little-endian, as the file says
      for (std::size_t b = 0; b < width; ++b) block_[at + i * width + b] = static_cast<char>(ids[i] >> (8 * b));
    ids = ids.subspan(count);
    total_ += static_cast<std::int64_t>(count);
    if (block_.size() == static_cast<std::size_t>(token_format::kBlockBytes)) flush_block();
  }
}

void TokenWriter::flush_block() {
  if (block_.empty()) return;
  checksums_.push_back(token_format::checksum(block_.data(), block_.size()));
  raw_.write_at(static_cast<std::uint64_t>(raw_bytes_), block_.data(), block_.size());
  raw_bytes_ += static_cast<std::int64_t>(block_.size());
  block_.clear();
}

TokenFileInfo TokenWriter::finish(std::vector<std::string> source_names, std::string source_hash) {
  flush_block();
  require(total_ > 0, "there was no text to tokenize, so {} was not written", options_.path);
  TokenFileInfo info;
  info.path = options_.path;
  info.tokenizer_name = tokenizer_.name();
  info.tokenizer_hash = tokenizer_.hash();
  std::error_code not_a_file;
  if (std::filesystem::exists(tokenizer_.name(), not_a_file))
    info.tokenizer_path = std::filesystem::weakly_canonical(tokenizer_.name()).string();
  info.tool_version = kVersion;
  info.source_names = std::move(source_names);
  info.source_hash = std::move(source_hash);
  info.vocab_size = tokenizer_.vocab_size();
  info.end_of_text = tokenizer_.end_of_text();
  info.total_tokens = total_;
  info.val_start = validation_start(total_, options_.val_fraction, document_starts_);
  info.num_documents = documents();
  info.has_answers = options_.answers;
  info.block_bytes = token_format::kBlockBytes;
  info.token_bytes = token_bytes_;

  const std::filesystem::path target(options_.path);
  const std::string temporary =
      folder_of(options_.path) + "/." + target.filename().string() + ".tmp-" + std::to_string(::getpid());
  Remover remover(temporary);
  write_hdf5(temporary, info);
  rename_into_place(temporary, options_.path, options_.force);
  return info;
}

void TokenWriter::write_hdf5(const std::string& path, const TokenFileInfo& info) {
  std::string text;
  std::vector<std::uint32_t> offsets{0};
  for (std::int64_t id = 0; id < info.vocab_size; ++id) {
    text += tokenizer_.token_bytes(static_cast<std::uint32_t>(id));
    offsets.push_back(static_cast<std::uint32_t>(text.size()));
  }
  const token_format::Digests digests{
      token_format::hex_checksum(checksums_.data(), checksums_.size() * sizeof(std::uint64_t)),
      token_format::hex_checksum(document_starts_.data(), document_starts_.size() * sizeof(std::int64_t)),
      token_format::hex_checksum(text.data(), text.size(), token_format::checksum(offsets.data(), offsets.size() * 4))};
  std::uint64_t offset = 0;
  {
    hdf5::Lock lock;
    hdf5::Handle file = hdf5::create_file(path);
    const hid_t id = file.get();
    hdf5::write_attribute(id, "format", token_format::kFormat);
    hdf5::write_attribute(id, "format_version", token_format::kVersion);
    hdf5::write_attribute(id, "tool_version", info.tool_version);
    hdf5::write_attribute(id, "tokenizer_name", info.tokenizer_name);
    hdf5::write_attribute(id, "tokenizer_hash", info.tokenizer_hash);
    if (!info.tokenizer_path.empty()) hdf5::write_attribute(id, "tokenizer_path", info.tokenizer_path);
    hdf5::write_attribute(id, "source_hash", info.source_hash);
    hdf5::write_attribute(id, "vocab_size", info.vocab_size);
    hdf5::write_attribute(id, "end_of_text", info.end_of_text);
    hdf5::write_attribute(id, "val_start", info.val_start);
    hdf5::write_attribute(id, "num_documents", info.num_documents);
    hdf5::write_attribute(id, "block_bytes", info.block_bytes);
    hdf5::write_attribute(id, "document_starts_checksum", digests.document_starts);
    hdf5::write_attribute(id, "token_text_checksum", digests.token_text);
    hdf5::write_attribute(id, "metadata_checksum", token_format::metadata_checksum(info, digests));
    if (info.has_answers) {
      hdf5::write_attribute(
          id, "answer_ranges_checksum",
          token_format::hex_checksum(answer_bounds_.data(), answer_bounds_.size() * sizeof(std::int64_t)));
      hdf5::create_dataset(id, "/answer_ranges", H5T_STD_I64LE, answer_bounds_.size(), answer_bounds_.data());
    }
    write_names(id, info.source_names);
    hdf5::create_dataset(id, "/document_starts", H5T_STD_I64LE, document_starts_.size(), document_starts_.data());
    hdf5::create_dataset(id, "/block_checksums", H5T_STD_U64LE, checksums_.size(), checksums_.data());
    hdf5::create_dataset(id, "/token_text_offsets", H5T_STD_U32LE, offsets.size(), offsets.data());
    hdf5::create_dataset(id, "/token_text", H5T_STD_U8LE, text.size(), text.data());
    const hid_t type = token_bytes_ == 2 ? H5T_STD_U16LE : H5T_STD_U32LE;
    hdf5::Handle tokens = hdf5::create_dataset(id, "/tokens", type, static_cast<std::uint64_t>(total_), nullptr);
    const auto place = hdf5::dataset_offset(tokens.get());
    require(place.has_value(), "internal error: HDF5 gave no place for the tokens in {}", path);
    offset = *place;
    tokens.close();
    require(file.close() >= 0, "HDF5 could not finish {}: {}", path, hdf5::last_error());
  }
  File out = File::open_to_update(path);
  copy_bytes(raw_, out, offset, static_cast<std::uint64_t>(raw_bytes_));
  out.sync();
}

}  // namespace sfa
