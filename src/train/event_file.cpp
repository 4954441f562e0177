#include "train/event_file.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/error.h"

namespace sfa {
namespace {
namespace fs = std::filesystem;

constexpr std::array<std::uint32_t, 256> kCrcTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t x = i;
    for (int bit = 0; bit < 8; ++bit) x = x & 1 ? x >> 1 ^ 0x82f63b78u : x >> 1;
    table[i] = x;
  }
  return table;
}();

std::uint32_t masked_crc(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

template <class T>
void put(std::string& out, T value) {
  static_assert(std::endian::native == std::endian::little);
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <class T>
T get(const std::string& from, std::size_t at) {
  T value;
  std::memcpy(&value, from.data() + at, sizeof value);
  return value;
}

// Protocol buffers: a field is its number and wire type, then a varint, 4 or 8 bytes, or a length and bytes.
enum Wire : std::uint32_t { kVarint = 0, kEight = 1, kBytes = 2, kFour = 5 };

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}
void put_key(std::string& out, std::uint32_t field, Wire wire) {
  put_varint(out, field << 3 | wire);
}
void put_text(std::string& out, std::uint32_t field, std::string_view text) {
  put_key(out, field, kBytes);
  put_varint(out, text.size());
  out += text;
}

// Event: wall_time = 1, step = 2, and one of file_version = 3, summary = 5, session_log = 7.
std::string event_at(std::int64_t step) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  std::string out;
  put_key(out, 1, kEight);
  put(out, std::chrono::duration<double>(now).count());
  put_key(out, 2, kVarint);
  put_varint(out, static_cast<std::uint64_t>(step));
  return out;
}

// Summary.Value: tag = 1, simple_value = 2.
std::string scalar(std::string_view tag, double value) {
  std::string out;
  put_text(out, 1, tag);
  put_key(out, 2, kFour);
  put(out, static_cast<float>(value));
  return out;
}

// The step of an event, for those that this file writes: wall_time first, then step.
std::int64_t step_of(std::string_view event) {
  constexpr std::size_t kBefore = 1 + sizeof(double) + 1;
  std::uint64_t step = 0;
  int shift = 0;
  for (std::size_t i = kBefore; i < event.size() && shift < 64; ++i, shift += 7) {
    const auto byte = static_cast<unsigned char>(event[i]);
    step |= std::uint64_t{byte & 0x7fu} << shift;
    if (byte < 0x80) break;
  }
  return static_cast<std::int64_t>(step);
}

// Bytes of the file up to the first record that is torn, damaged, or of a step after `last_step`.
std::size_t good_bytes(const std::string& file, std::int64_t last_step) {
  constexpr std::size_t kHead = 12, kTail = 4;
  std::size_t at = 0;
  while (file.size() - at >= kHead + kTail) {
    const auto length = get<std::uint64_t>(file, at);
    if (masked_crc({file.data() + at, 8}) != get<std::uint32_t>(file, at + 8)) break;
    if (length > file.size() - at - kHead - kTail) break;
    const std::string_view event(file.data() + at + kHead, length);
    if (masked_crc(event) != get<std::uint32_t>(file, at + kHead + length)) break;
    if (step_of(event) > last_step) break;
    at += kHead + length + kTail;
  }
  return at;
}

constexpr std::string_view kPrefix = "events.out.tfevents.";

// Returns the time in the name of the newest file, 0 when there is none.
std::int64_t cut_off(const fs::path& folder, std::int64_t last_step) {
  std::int64_t newest = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (!entry.is_regular_file() || !entry.path().filename().string().starts_with(kPrefix)) continue;
    newest =
        std::max<std::int64_t>(newest, std::strtoll(entry.path().filename().c_str() + kPrefix.size(), nullptr, 10));
    std::ifstream in(entry.path(), std::ios::binary);
    const std::string content{std::istreambuf_iterator<char>(in), {}};
    const std::size_t good = good_bytes(content, last_step);
    std::error_code error;
    if (good == 0)
      fs::remove(entry.path(), error);
    else if (good < content.size())
      fs::resize_file(entry.path(), good, error);
    require(!error, "{}: can't be shortened to step {}: {}", entry.path().string(), last_step, error.message());
  }
  return newest;
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t crc = ~0u;
  for (const char c : bytes) crc = kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xff] ^ crc >> 8;
  return ~crc;
}

std::string event_record(std::string_view payload) {
  std::string out;
  put(out, static_cast<std::uint64_t>(payload.size()));
  put(out, masked_crc(out));
  out += payload;
  put(out, masked_crc(payload));
  return out;
}

EventFile::EventFile(const fs::path& folder, std::int64_t last_step) {
  const std::int64_t newest = cut_off(folder, last_step);
  char host[256] = "host";
  ::gethostname(host, sizeof host - 1);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const std::int64_t seconds = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  // Files of a folder are read in the order of their names.
  path_ = folder / fmt::format("{}{:010}.{}", kPrefix, std::max(seconds, newest + 1), host);
  out_.open(path_, std::ios::binary);
  require(out_.good(), "{}: can't be opened for writing", path_.string());
  std::string version = event_at(last_step);
  put_text(version, 3, "brain.Event:2");
  append(event_record(version));
  if (last_step == 0) return;
  // A viewer that has read further than where the run goes on forgets those steps: session_log.status = START.
  std::string restart = event_at(last_step + 1), start;
  put_key(start, 1, kVarint);
  put_varint(start, 1);
  put_text(restart, 7, start);
  append(event_record(restart));
}

void EventFile::write(const nlohmann::ordered_json& object) {
  std::string summary;
  for (const auto& [tag, value] : object.items())
    if (tag != "step" && value.is_number()) put_text(summary, 1, scalar(tag, value.get<double>()));
  std::string event = event_at(object.at("step").get<std::int64_t>());
  put_text(event, 5, summary);
  append(event_record(event));
}

void EventFile::append(const std::string& record) {
  out_ << record << std::flush;
  require(out_.good(), "{}: can't be written; is the disk full?", path_.string());
}

}  // namespace sfa
