#include "data/text_source.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"
#include "data/byte_stream.h"

namespace sfa {
namespace {
constexpr std::size_t kPieceBytes = 1 << 20;
constexpr std::size_t kLongestRecord = std::size_t{1} << 30;
constexpr std::size_t kHeadBytes = 4096;  // looked at for zero bytes

bool is_jsonl(const std::string& path, TextFormat format) {
  if (format != TextFormat::by_name) return format == TextFormat::jsonl;
  const std::string plain = path.substr(0, path.size() - compression_of(path).size());
  return plain.ends_with(".jsonl") || plain.ends_with(".ndjson");
}

// Half of a surrogate pair, written as an escape, is no character, but Python writes such; each becomes U+FFFD.
std::string without_lone_surrogates(std::string_view line) {
  const auto unit_at = [&](std::size_t i) -> std::int64_t {  // the 16 bits of \uXXXX at i; -1: none there
    if (i + 6 > line.size() || line[i] != '\\' || line[i + 1] != 'u') return -1;
    std::int64_t value = 0;
    for (std::size_t k = i + 2; k < i + 6; ++k) {
      const char c = line[k], low = static_cast<char>(c | 0x20);
      const int digit = c >= '0' && c <= '9' ? c - '0' : low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
      if (digit < 0) return -1;
      value = 16 * value + digit;
    }
    return value;
  };
  std::string out;
  for (std::size_t i = 0; i < line.size();) {
    const std::int64_t unit = unit_at(i);
    std::size_t bytes = unit >= 0 ? 6 : line[i] == '\\' && i + 1 < line.size() ? 2 : 1;
    bool lone = unit >= 0xDC00 && unit <= 0xDFFF;
    if (unit >= 0xD800 && unit <= 0xDBFF) {
      const std::int64_t next = unit_at(i + 6);
      lone = next < 0xDC00 || next > 0xDFFF;
      if (!lone) bytes = 12;
    }
    out += lone ? std::string_view("\\ufffd") : line.substr(i, bytes);
    i += bytes;
  }
  return out;
}
}  // namespace

TextFormat text_format_from_name(std::string_view name) {
  if (name == "auto") return TextFormat::by_name;
  if (name == "txt") return TextFormat::text;
  if (name == "jsonl") return TextFormat::jsonl;
  fail("unknown text format '{}'; known are auto, txt and jsonl", name);
}

class TextSource::Impl {
 public:
  explicit Impl(TextSourceOptions options) : options_(std::move(options)) {
    require(!options_.inputs.empty(), "no input was named; give .txt or .jsonl files, or - for standard input");
    require(options_.answer_field.empty() || options_.answer_field != options_.field,
            "the field '{}' can't hold both the prompt (--field) and its answer (--answer-field)", options_.field);
    bool known = true;
    for (const std::string& path : options_.inputs) {
      require(options_.answer_field.empty() || is_jsonl(path, options_.format),
              "the input {} is plain text, which has no field '{}'; answers are told from prompts in .jsonl records "
              "alone",
              path, options_.answer_field);
      known &= check(path);
    }
    if (!known) total_ = 0;
  }

  bool next(TextPiece& piece) {
    for (;;) {
      if (stream_ == nullptr) {
        if (input_ == options_.inputs.size()) return false;
        stream_ = open_byte_stream(path());
        jsonl_ = is_jsonl(path(), options_.format);
        begun_ = ended_ = false;
        line_ = 0;
        buffer_.clear();
        at_ = 0;
      }
      if (jsonl_ ? next_record(piece) : next_part(piece)) return true;
      done_ += stream_->consumed();
      stream_.reset();
      ++input_;
    }
  }

  [[nodiscard]] std::uint64_t consumed() const { return done_ + (stream_ != nullptr ? stream_->consumed() : 0); }
  std::uint64_t read_ = 0, total_ = 0;

 private:
  [[nodiscard]] const std::string& path() const { return options_.inputs[input_]; }

  // False when the size is not known beforehand.
  bool check(const std::string& path) {
    if (path == "-") {
      require(std::count(options_.inputs.begin(), options_.inputs.end(), "-") == 1,
              "standard input (-) can be named once only");
      return false;
    }
    struct stat status {};
    const int failed = ::stat(path.c_str(), &status) == 0 ? 0 : errno;
    require(failed == 0, "could not open the input {}: {}", path, std::strerror(failed));
    require(!S_ISDIR(status.st_mode), "the input {} is a folder; name the files in it", path);
    if (!S_ISREG(status.st_mode)) return false;  // reading a pipe here would take bytes from it
    total_ += static_cast<std::uint64_t>(status.st_size);
    std::string head(kHeadBytes, '\0');
    head.resize(open_byte_stream(path)->read(head.data(), head.size()));
    check_is_text(path, head);
    return true;
  }

  void check_is_text(const std::string& path, std::string_view head) const {
    require(options_.format == TextFormat::text || head.substr(0, kHeadBytes).find('\0') == std::string_view::npos,
            "the input {} does not look like text: it has a zero byte near its start; give --format txt to tokenize it "
            "all the same",
            path);
  }

  // Appends up to kPieceBytes of the input to buffer_; false at its end.
  bool fill() {
    if (ended_) return false;
    const std::size_t old = buffer_.size();
    buffer_.resize(old + kPieceBytes);
    const std::size_t got = stream_->read(buffer_.data() + old, kPieceBytes);
    buffer_.resize(old + got);
    ended_ = got < kPieceBytes;
    read_ += got;
    return got > 0;
  }

  bool next_part(TextPiece& piece) {
    buffer_.clear();
    if (!fill()) return false;
    piece.text.swap(buffer_);
    piece.first = !begun_;
    begun_ = true;
    return true;
  }

  // The next line without its newline; false at the end.
  bool next_line(std::string_view& line) {
    std::size_t searched = at_;
    for (;;) {
      const std::size_t end = buffer_.find('\n', searched);
      if (end != std::string::npos) {
        line = std::string_view(buffer_).substr(at_, end - at_);
        at_ = end + 1;
        break;
      }
      buffer_.erase(0, at_);
      at_ = 0;
      searched = buffer_.size();
      require(buffer_.size() <= kLongestRecord, "{}, line {}: a record of more than 1 GiB", path(), line_ + 1);
      if (fill()) continue;
      if (buffer_.empty()) return false;
      line = buffer_;
      at_ = buffer_.size();
      break;
    }
    ++line_;
    return true;
  }

  std::string& string_field(nlohmann::json& record, const std::string& field, const char* what) const {
    const auto found = record.find(field);
    require(found != record.end() && found->is_string(),
            "{}, line {}: the record has no string field '{}'; name the {}", path(), line_, field, what);
    return found->get_ref<std::string&>();
  }

  bool next_record(TextPiece& piece) {
    if (!answer_.text.empty()) {
      piece = std::exchange(answer_, {});
      return true;
    }
    std::string_view line;
    while (next_line(line)) {
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      nlohmann::json record = nlohmann::json::parse(line, nullptr, false);
      if (record.is_discarded()) record = nlohmann::json::parse(without_lone_surrogates(line), nullptr, false);
      require(!record.is_discarded(), "{}, line {}: not valid JSON", path(), line_);
      require(record.is_object(), "{}, line {}: the record is not a JSON object", path(), line_);
      piece = {std::move(string_field(record, options_.field, "field that holds the text with --field")), true, false};
      if (!options_.answer_field.empty())
        answer_ = {std::move(string_field(record, options_.answer_field, "answer's field with --answer-field")),
                   piece.text.empty(), true};
      if (!piece.text.empty()) return true;
      if (!answer_.text.empty()) return next_record(piece);
    }
    return false;
  }

  TextSourceOptions options_;
  std::size_t input_ = 0;
  std::unique_ptr<ByteStream> stream_;
  std::uint64_t done_ = 0;  // bytes of the inputs before the open one
  bool jsonl_ = false, begun_ = false, ended_ = false;
  std::int64_t line_ = 0;
  std::string buffer_;
  std::size_t at_ = 0;  // of the next line in buffer_
  TextPiece answer_;    // of the record that was read last, still to come
};

TextSource::TextSource(TextSourceOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
TextSource::~TextSource() = default;
bool TextSource::next(TextPiece& piece) {
  return impl_->next(piece);
}
std::uint64_t TextSource::bytes_read() const {
  return impl_->read_;
}
std::uint64_t TextSource::bytes_consumed() const {
  return impl_->consumed();
}
std::uint64_t TextSource::bytes_total() const {
  return impl_->total_;
}

}  // namespace sfa
