// TensorBoard's event file, decoded here by another reading of the formats than the one that wrote it.
#include "train/event_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "core/error.h"

namespace sfa::test {
namespace {
namespace fs = std::filesystem;

// CRC-32C a bit at a time, as RFC 3720 defines it.
std::uint32_t slow_crc(const std::string& bytes) {
  std::uint32_t crc = 0xffffffffu;
  for (const char c : bytes)
    for (int bit = 0; bit < 8; ++bit) {
      const bool out = ((crc ^ static_cast<unsigned char>(c) >> bit) & 1) != 0;
      crc >>= 1;
      if (out) crc ^= 0x82f63b78u;
    }
  return crc ^ 0xffffffffu;
}

std::uint32_t masked(const std::string& bytes) {
  const std::uint32_t crc = slow_crc(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

TEST(EventFile, Crc32c) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c(""), 0u);
}

// Fields of one protocol-buffer message: number -> raw values in order.
std::map<int, std::vector<std::string>> fields_of(const std::string& message) {
  std::map<int, std::vector<std::string>> all;
  std::size_t at = 0;
  const auto varint = [&] {
    std::uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(message.at(at++));
      value |= std::uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < message.size()) {
    const std::uint64_t key = varint();
    std::size_t size = 0;
    std::string value;
    switch (key & 7) {
      case 0:
        value = std::to_string(varint());
        break;
      case 1:
        size = 8;
        break;
      case 2:
        size = varint();
        break;
      case 5:
        size = 4;
        break;
      default:
        ADD_FAILURE() << "wire type " << (key & 7);
        return all;
    }
    if (value.empty()) {
      value = message.substr(at, size);
      at += size;
    }
    all[static_cast<int>(key >> 3)].push_back(value);
  }
  return all;
}

template <class T>
T number(const std::string& bytes) {
  T value{};
  EXPECT_EQ(bytes.size(), sizeof value);
  std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
  return value;
}

struct Event {
  std::int64_t step = 0;
  double time = 0;
  std::string version;
  bool restart = false;
  std::map<std::string, float> scalars;
};

class EventFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    top_ = fs::temp_directory_path() / ("sfa_events_" + std::to_string(::getpid()));
    fs::remove_all(top_);
    fs::create_directories(top_);
  }
  void TearDown() override { fs::remove_all(top_); }

  static std::string content(const fs::path& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  static void decode(const std::string& file, std::vector<Event>& events) {
    std::size_t at = 0;
    while (at < file.size()) {
      ASSERT_GE(file.size() - at, 16u);
      const auto length = number<std::uint64_t>(file.substr(at, 8));
      ASSERT_EQ(number<std::uint32_t>(file.substr(at + 8, 4)), masked(file.substr(at, 8)));
      ASSERT_LE(length, file.size() - at - 16);
      const std::string payload = file.substr(at + 12, length);
      ASSERT_EQ(number<std::uint32_t>(file.substr(at + 12 + length, 4)), masked(payload));
      at += 16 + length;
      auto fields = fields_of(payload);
      Event e;
      e.time = number<double>(fields.at(1).at(0));
      e.step = std::stoll(fields.at(2).at(0));
      if (fields.contains(3)) e.version = fields[3][0];
      if (fields.contains(7)) e.restart = fields_of(fields[7][0]).at(1).at(0) == "1";
      if (fields.contains(5)) {
        const auto summary = fields_of(fields[5][0]);
        for (const std::string& value : summary.at(1)) {
          auto v = fields_of(value);
          e.scalars[v.at(1).at(0)] = number<float>(v.at(2).at(0));
        }
      }
      events.push_back(e);
    }
  }

  // All files of the folder, in the order of their names.
  [[nodiscard]] std::vector<Event> events() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(top_)) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    std::vector<Event> all;
    for (const fs::path& file : files) decode(content(file), all);
    return all;
  }
  [[nodiscard]] std::vector<std::int64_t> steps() const {
    std::vector<std::int64_t> all;
    for (const Event& e : events())
      if (!e.scalars.empty()) all.push_back(e.step);
    return all;
  }
  static nlohmann::ordered_json line(std::int64_t step) {
    return {{"step", step}, {"train/loss", 2.5 + static_cast<double>(step)}, {"lr", 1e-3}, {"note", "no number"}};
  }

  fs::path top_;
};

TEST_F(EventFileTest, HoldsVersionAndScalars) {
  {
    EventFile file(top_, 0);
    file.write(line(1));
    file.write({{"step", 3'000'000'000},
                {"val/loss", -1.25},
                {"a tag of some length, for a longer varint" + std::string(200, '.'), 7}});
    EXPECT_EQ(file.path().filename().string().rfind("events.out.tfevents.", 0), 0u);
  }
  const std::vector<Event> all = events();
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].version, "brain.Event:2");
  EXPECT_GT(all[0].time, 1.6e9);
  EXPECT_EQ(all[1].step, 1);
  EXPECT_EQ(all[1].scalars, (std::map<std::string, float>{{"train/loss", 3.5f}, {"lr", 1e-3f}}));
  EXPECT_EQ(all[2].step, 3'000'000'000);
  EXPECT_EQ(all[2].scalars.at("val/loss"), -1.25f);
  EXPECT_EQ(all[2].scalars.size(), 2u);
}

TEST_F(EventFileTest, AResumedRunRepeatsNoStep) {
  {
    EventFile file(top_, 0);
    for (std::int64_t step = 1; step <= 7; ++step) file.write(line(step));
  }
  {
    EventFile file(top_, 4);
    for (std::int64_t step = 5; step <= 6; ++step) file.write(line(step));
  }
  EventFile file(top_, 5);
  for (std::int64_t step = 6; step <= 8; ++step) file.write(line(step));
  EXPECT_EQ(steps(), (std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  // Viewers that were looking are told from where on to forget.
  const std::vector<Event> all = events();
  const auto restart = std::find_if(all.begin(), all.end(), [](const Event& e) { return e.restart; });
  ASSERT_NE(restart, all.end());
  EXPECT_EQ(restart->step, 5);
}

TEST_F(EventFileTest, TornAndDamagedEndsAreCutOff) {
  fs::path path;
  {
    EventFile file(top_, 0);
    for (std::int64_t step = 1; step <= 5; ++step) file.write(line(step));
    path = file.path();
  }
  fs::resize_file(path, fs::file_size(path) - 3);
  { EventFile file(top_, 100); }
  EXPECT_EQ(steps(), (std::vector<std::int64_t>{1, 2, 3, 4}));
  std::string bytes = content(path);
  bytes[bytes.size() - 20] ^= 1;
  std::ofstream(path, std::ios::binary) << bytes;
  { EventFile file(top_, 100); }
  EXPECT_EQ(steps(), (std::vector<std::int64_t>{1, 2, 3}));
  std::ofstream(path, std::ios::binary) << "no events at all";
  { EventFile file(top_, 100); }
  EXPECT_FALSE(fs::exists(path));
  EXPECT_TRUE(steps().empty());
}

}  // namespace
}  // namespace sfa::test
