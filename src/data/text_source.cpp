#include "data/text_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace sfa {
namespace {
constexpr std::size_t kPieceBytes = 1 << 20;
constexpr std::size_t kLongestRecord = std::size_t{1} << 30;

bool is_jsonl(const std::string& path, TextFormat format) {
  if (format != TextFormat::by_name) return format == TextFormat::jsonl;
  const std::string extension = std::filesystem::path(path).extension().string();
  return extension == ".jsonl" || extension == ".ndjson";
}

int open_input(const std::string& path) {
  if (path == "-") return STDIN_FILENO;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(fd >= 0, "could not open the input {}: {}", path, std::strerror(errno));
  return fd;
}

std::size_t read_some(int fd, const std::string& path, char* out, std::size_t count) {
  for (;;) {
    const ssize_t got = ::read(fd, out, count);
    if (got >= 0) return static_cast<std::size_t>(got);
    require(errno == EINTR, "could not read the input {}: {}", path, std::strerror(errno));
  }
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
  explicit Impl(TextSourceOptions options) : options_(std::move(options)), state_(XXH3_createState()) {
    XXH3_128bits_reset(state_);
    require(!options_.inputs.empty(), "no input was named; give .txt or .jsonl files, or - for standard input");
    bool known = true;
    for (const std::string& path : options_.inputs) known &= check(path);
    if (!known) total_ = 0;
  }
  ~Impl() {
    close_input();
    XXH3_freeState(state_);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  bool next(TextPiece& piece) {
    for (;;) {
      if (fd_ < 0) {
        if (input_ == options_.inputs.size()) return false;
        fd_ = open_input(path());
        jsonl_ = is_jsonl(path(), options_.format);
        begun_ = ended_ = false;
        line_ = 0;
        buffer_.clear();
        at_ = 0;
      }
      if (jsonl_ ? next_record(piece) : next_part(piece)) return true;
      close_input();
      ++input_;
    }
  }

  std::uint64_t read_ = 0, total_ = 0;
  XXH3_state_t* state() const { return state_; }

 private:
  [[nodiscard]] const std::string& path() const { return options_.inputs[input_]; }

  // False when the size is not known beforehand.
  bool check(const std::string& path) {
    if (path == "-") {
      require(std::count(options_.inputs.begin(), options_.inputs.end(), "-") == 1,
              "standard input (-) can be named once only");
      return false;
    }
    const int fd = open_input(path);
    struct stat status {};
    ::fstat(fd, &status);
    char head[4096];
    const bool regular = S_ISREG(status.st_mode);
    const ssize_t got = regular ? ::pread(fd, head, sizeof head, 0) : 0;
    ::close(fd);
    require(!S_ISDIR(status.st_mode), "the input {} is a folder; name the files in it", path);
    require(options_.format == TextFormat::text || got <= 0 || std::find(head, head + got, '\0') == head + got,
            "the input {} does not look like text: it has a zero byte near its start; give --format txt to tokenize it "
            "all the same",
            path);
    total_ += regular ? static_cast<std::uint64_t>(status.st_size) : 0;
    return regular;
  }

  void close_input() {
    if (fd_ > STDIN_FILENO) ::close(fd_);
    fd_ = -1;
  }

  // Appends up to kPieceBytes of the input to buffer_; false at its end.
  bool fill() {
    if (ended_) return false;
    const std::size_t old = buffer_.size();
    buffer_.resize(old + kPieceBytes);
    std::size_t got = 0;
    while (got < kPieceBytes) {  // pipes give little at a time; pieces should not depend on it
      const std::size_t more = read_some(fd_, path(), buffer_.data() + old + got, kPieceBytes - got);
      if (more == 0) {
        ended_ = true;
        break;
      }
      got += more;
    }
    buffer_.resize(old + got);
    XXH3_128bits_update(state_, buffer_.data() + old, got);
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

  bool next_record(TextPiece& piece) {
    std::string_view line;
    while (next_line(line)) {
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      nlohmann::json record = nlohmann::json::parse(line, nullptr, false);
      require(!record.is_discarded(), "{}, line {}: not valid JSON", path(), line_);
      require(record.is_object(), "{}, line {}: the record is not a JSON object", path(), line_);
      const auto found = record.find(options_.field);
      require(found != record.end() && found->is_string(),
              "{}, line {}: the record has no string field '{}'; name the field that holds the text with --field",
              path(), line_, options_.field);
      piece.text = std::move(found->get_ref<std::string&>());
      piece.first = true;
      if (!piece.text.empty()) return true;
    }
    return false;
  }

  TextSourceOptions options_;
  XXH3_state_t* state_;
  std::size_t input_ = 0;
  int fd_ = -1;
  bool jsonl_ = false, begun_ = false, ended_ = false;
  std::int64_t line_ = 0;
  std::string buffer_;
  std::size_t at_ = 0;  // of the next line in buffer_
};

TextSource::TextSource(TextSourceOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
TextSource::~TextSource() = default;
bool TextSource::next(TextPiece& piece) {
  return impl_->next(piece);
}
std::uint64_t TextSource::bytes_read() const {
  return impl_->read_;
}
std::uint64_t TextSource::bytes_total() const {
  return impl_->total_;
}

std::string TextSource::hash() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(impl_->state());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace sfa
