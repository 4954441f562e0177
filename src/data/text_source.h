// Text inputs as a stream of documents, a bounded piece at a time.
//
//   .jsonl, .ndjson   one document a line: the string in the field given ("text"), and behind it that in the answer's
//                     field if one is named; blank lines are skipped
//   anything else     one document: the whole file ("-": standard input)
// Each may be compressed: a further .gz, .xz or .zst. Empty documents are skipped. Text is taken byte for byte; invalid
// UTF-8 passes through.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace sfa {

/// A piece of a document. `first`: a document begins with it; the pieces after it belong to the same document.
/// `answer`: it is (part of) what the document's prompt asks for.
struct TextPiece {
  std::string text;
  bool first = false;
  bool answer = false;
};

enum class TextFormat : std::uint8_t { by_name, text, jsonl };
/// "auto", "txt" or "jsonl"; throws Error otherwise.
TextFormat text_format_from_name(std::string_view name);

struct TextSourceOptions {
  std::vector<std::string> inputs;  // paths, or "-" for standard input
  TextFormat format = TextFormat::by_name;
  std::string field = "text";
  std::string answer_field;  // of a record: its document goes on with this string, which is an answer; empty = none
};

class TextSource {
 public:
  /// Checks that every input can be opened, is a file and is not binary, before anything is read.
  explicit TextSource(TextSourceOptions options);
  ~TextSource();
  TextSource(const TextSource&) = delete;
  TextSource& operator=(const TextSource&) = delete;

  /// The next piece, at most about 1 MiB unless it is a .jsonl record; false at the end of the last input.
  /// Throws Error naming file and line for a record that is not JSON or lacks the field.
  bool next(TextPiece& piece);

  /// Bytes of text read so far, decompressed.
  [[nodiscard]] std::uint64_t bytes_read() const;
  /// Bytes taken from the inputs so far, as they lie on disk, and their sum; the latter 0 when unknown (standard
  /// input).
  [[nodiscard]] std::uint64_t bytes_consumed() const;
  [[nodiscard]] std::uint64_t bytes_total() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sfa
