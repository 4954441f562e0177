#include "data/byte_stream.h"

#include <fcntl.h>
#include <lzma.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "core/error.h"

namespace sfa {
namespace {
constexpr std::size_t kInput = 256 << 10;

int open_input(const std::string& path) {
  if (path == "-") return STDIN_FILENO;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(fd >= 0, "could not open the input {}: {}", path, std::strerror(errno));
  return fd;
}

[[noreturn]] void damaged(const std::string& path, const char* kind, const char* reason) {
  fail("the input {} is damaged: its {} data cannot be decompressed ({})", path, kind, reason);
}
[[noreturn]] void cut_off(const std::string& path, const char* kind) {
  fail("the input {} is truncated: it ends in the middle of its {} data", path, kind);
}

class PlainStream final : public ByteStream {
 public:
  explicit PlainStream(const std::string& path) : ByteStream(path) {}

 private:
  std::size_t produce(char* out, std::size_t count) override { return take(out, count); }
};

class GzipStream final : public ByteStream {
 public:
  explicit GzipStream(const std::string& path) : ByteStream(path), input_(kInput) {
    require(inflateInit2(&state_, 15 + 16) == Z_OK, "zlib could not be started for {}", path);
  }
  ~GzipStream() override { inflateEnd(&state_); }

 private:
  std::size_t produce(char* out, std::size_t count) override {
    state_.next_out = reinterpret_cast<Bytef*>(out);
    state_.avail_out = static_cast<uInt>(count);
    while (state_.avail_out == count) {
      if (state_.avail_in == 0) {
        state_.avail_in = static_cast<uInt>(take(input_.data(), input_.size()));
        state_.next_in = reinterpret_cast<Bytef*>(input_.data());
        if (state_.avail_in == 0) {
          if (inside_) cut_off(path(), "gzip");
          return 0;
        }
      }
      if (!inside_) {  // another member follows
        inflateReset(&state_);
        inside_ = true;
      }
      const int result = inflate(&state_, Z_NO_FLUSH);
      if (result == Z_STREAM_END)
        inside_ = false;
      else if (result != Z_OK && result != Z_BUF_ERROR)
        damaged(path(), "gzip", state_.msg != nullptr ? state_.msg : zError(result));
    }
    return count - state_.avail_out;
  }

  z_stream state_{};
  std::vector<char> input_;
  bool inside_ = true;
};

class XzStream final : public ByteStream {
 public:
  explicit XzStream(const std::string& path) : ByteStream(path), input_(kInput) {
    require(lzma_stream_decoder(&state_, std::uint64_t{1} << 30, LZMA_CONCATENATED) == LZMA_OK,
            "liblzma could not be started for {}", path);
  }
  ~XzStream() override { lzma_end(&state_); }

 private:
  std::size_t produce(char* out, std::size_t count) override {
    state_.next_out = reinterpret_cast<std::uint8_t*>(out);
    state_.avail_out = count;
    while (state_.avail_out == count && !ended_) {
      if (state_.avail_in == 0 && !input_ended_) {
        state_.avail_in = take(input_.data(), input_.size());
        state_.next_in = reinterpret_cast<const std::uint8_t*>(input_.data());
        input_ended_ = state_.avail_in == 0;
      }
      const lzma_ret result = lzma_code(&state_, input_ended_ ? LZMA_FINISH : LZMA_RUN);
      if (result == LZMA_STREAM_END) {
        ended_ = true;
      } else if (result == LZMA_BUF_ERROR) {
        cut_off(path(), "xz");
      } else if (result == LZMA_MEMLIMIT_ERROR) {
        damaged(path(), "xz", "it needs more than 1 GiB of memory");
      } else if (result != LZMA_OK) {
        damaged(path(), "xz", result == LZMA_FORMAT_ERROR ? "not an .xz file" : "corrupt data");
      }
    }
    return count - state_.avail_out;
  }

  lzma_stream state_ = LZMA_STREAM_INIT;
  std::vector<char> input_;
  bool input_ended_ = false, ended_ = false;
};

class ZstdStream final : public ByteStream {
 public:
  explicit ZstdStream(const std::string& path) : ByteStream(path), state_(ZSTD_createDStream()), input_(kInput) {
    require(state_ != nullptr, "zstd could not be started for {}", path);
    ZSTD_DCtx_setParameter(state_, ZSTD_d_windowLogMax, 31);  // The Pile's files were made with --long
  }
  ~ZstdStream() override { ZSTD_freeDStream(state_); }

 private:
  std::size_t produce(char* out, std::size_t count) override {
    ZSTD_outBuffer output{out, count, 0};
    while (output.pos == 0) {
      if (waiting_.pos == waiting_.size && !more_inside_) {
        waiting_ = {input_.data(), take(input_.data(), input_.size()), 0};
        if (waiting_.size == 0) {
          if (frame_open_) cut_off(path(), "zstd");
          return 0;
        }
      }
      const std::size_t result = ZSTD_decompressStream(state_, &output, &waiting_);
      if (ZSTD_isError(result) != 0) damaged(path(), "zstd", ZSTD_getErrorName(result));
      frame_open_ = result != 0;
      more_inside_ = output.pos == output.size && frame_open_;
    }
    return output.pos;
  }

  ZSTD_DStream* state_;
  std::vector<char> input_;
  ZSTD_inBuffer waiting_{nullptr, 0, 0};
  bool frame_open_ = false, more_inside_ = false;
};
}  // namespace

ByteStream::ByteStream(const std::string& path)
    : path_(path), descriptor_(new int(open_input(path)), [](const int* fd) {
        if (*fd != STDIN_FILENO) ::close(*fd);
        delete fd;
      }) {}

std::size_t ByteStream::take(char* out, std::size_t count) {
  for (;;) {
    const ssize_t got = ::read(*descriptor_, out, count);
    if (got >= 0) {
      consumed_ += static_cast<std::uint64_t>(got);
      return static_cast<std::size_t>(got);
    }
    require(errno == EINTR, "could not read the input {}: {}", path_, std::strerror(errno));
  }
}

std::size_t ByteStream::read(char* out, std::size_t count) {
  std::size_t done = 0;
  while (done < count) {
    const std::size_t more = produce(out + done, count - done);
    if (more == 0) break;
    done += more;
  }
  return done;
}

std::string compression_of(const std::string& path) {
  for (const char* ending : {".gz", ".xz", ".zst"})
    if (path.ends_with(ending)) return ending;
  return "";
}

std::unique_ptr<ByteStream> open_byte_stream(const std::string& path) {
  const std::string kind = compression_of(path);
  if (kind == ".gz") return std::make_unique<GzipStream>(path);
  if (kind == ".xz") return std::make_unique<XzStream>(path);
  if (kind == ".zst") return std::make_unique<ZstdStream>(path);
  return std::make_unique<PlainStream>(path);
}

}  // namespace sfa
