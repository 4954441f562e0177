// TensorBoard's event file: scalars by step. The format is TensorFlow's: records framed by length and masked CRC-32C
// (RFC 3720's polynomial), each an `Event` in protocol buffers' wire format; the first says "brain.Event:2".
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>

namespace sfa {

/// CRC-32C (Castagnoli), reflected, initial and final value inverted.
std::uint32_t crc32c(std::string_view bytes);

/// One record: length, its checksum, the payload, its checksum; checksums are stored "masked".
std::string event_record(std::string_view payload);

class EventFile {
 public:
  /// A new file events.out.tfevents.TIME.HOST in `folder`. What earlier files of the folder hold after `last_step`, and
  /// a record torn by a crash, is cut off first: a resumed run writes those steps again. Throws Error when a file can't
  /// be written.
  EventFile(const std::filesystem::path& folder, std::int64_t last_step);

  /// {"step": n, tag: number, ...}: one event with a scalar for each tag, flushed.
  void write(const nlohmann::ordered_json& object);

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  void append(const std::string& record);
  std::filesystem::path path_;
  std::ofstream out_;
};

}  // namespace sfa
