// Bytes of an input, decompressed on the way: plain, .gz, .xz, .zst, or standard input.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace sfa {

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  ByteStream(const ByteStream&) = delete;
  ByteStream& operator=(const ByteStream&) = delete;

  /// Fills `out` with up to `count` bytes; fewer only at the end of the input. Throws Error naming the file for data
  /// that is damaged or that ends too early.
  std::size_t read(char* out, std::size_t count);
  /// Bytes taken from the file so far, before decompression.
  [[nodiscard]] std::uint64_t consumed() const { return consumed_; }

 protected:
  explicit ByteStream(const std::string& path);
  /// Some bytes of the content, at least one unless it has ended.
  virtual std::size_t produce(char* out, std::size_t count) = 0;
  /// Some bytes of the file; 0 at its end.
  std::size_t take(char* out, std::size_t count);
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::shared_ptr<int> descriptor_;
  std::uint64_t consumed_ = 0;
};

/// "" , ".gz", ".xz" or ".zst": how a file of this name is compressed.
std::string compression_of(const std::string& path);

/// Opens by the name's ending; "-" is standard input, taken as it is.
std::unique_ptr<ByteStream> open_byte_stream(const std::string& path);

}  // namespace sfa
