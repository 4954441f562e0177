// safetensors files: what is written is read back, and nothing that a file says is believed unchecked.
#include "hf/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace sfa::hf {
namespace {
namespace fs = std::filesystem;

class Safetensors : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              ("sfa_safetensors_" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()) + "_" +
               std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  [[nodiscard]] std::string at(const std::string& name) const { return (folder_ / name).string(); }

  // A file with this header and as many bytes of data, counting up.
  std::string write(const std::string& header, std::size_t data, std::uint64_t claimed = 0) const {
    const std::string path = at("x.safetensors");
    const std::uint64_t length = claimed ? claimed : header.size();
    std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
    bytes += header;
    for (std::size_t i = 0; i < data; ++i) bytes += static_cast<char>(i);
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  static std::string error_of(const std::string& path) {
    try {
      const SafetensorsSet set(path);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  fs::path folder_;
};

std::span<const std::byte> bytes_of(const std::vector<float>& values) {
  return {reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(float)};
}

TEST_F(Safetensors, WhatIsWrittenIsReadBack) {
  const std::vector<float> a{1, -2, 3, 4, 5, 6}, b{7};
  {
    SafetensorsWriter writer(at("w.safetensors"), {{"b", "F32", {2, 3}}, {"a", "F32", {}}, {"none", "BF16", {0, 4}}},
                             {{"format", "pt"}});
    writer.add("b", bytes_of(a));
    writer.add("a", bytes_of(b));
    EXPECT_FALSE(fs::exists(at("w.safetensors"))) << "nothing stands under the name before it is whole";
    writer.add("none", {});
    writer.finish();
  }
  const SafetensorsFile file(at("w.safetensors"));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.tensors().at("b").shape, (std::vector<std::int64_t>{2, 3}));
  const auto bytes = file.bytes(file.tensors().at("b"));
  ASSERT_EQ(bytes.size(), 24u);
  EXPECT_EQ(std::memcmp(bytes.data(), a.data(), 24), 0);
  EXPECT_EQ(file.bytes(file.tensors().at("none")).size(), 0u);
}

TEST_F(Safetensors, AWriterThatDoesNotFinishLeavesNothing) {
  { const SafetensorsWriter writer(at("w.safetensors"), {{"b", "F32", {2}}}, {}); }
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(Safetensors, RefusesWhatCannotBeWithOneSentence) {
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  EXPECT_EQ(error_of(write(good, 8)), "");
  struct Case {
    std::string header;
    std::size_t data;
    std::uint64_t claimed;
    const char* says;
  };
  const std::string t = R"("dtype":"F32","shape":[2],"data_offsets":)";
  const std::vector<Case> cases{
      {good, 8, 0xFFFFFFFFFFFFFFFFu, "a header of 18446744073709551615 bytes is not allowed"},
      {good, 8, 4096, "is truncated"},
      {"", 0, 0, "is not a JSON object"},
      {"[1]", 0, 0, "is not a JSON object"},
      {"{\"a\": ", 0, 0, "is not valid JSON"},
      {"{\"\xff\":{" + t + "[0,8]}}", 8, 0, "is not valid JSON"},
      {good, 4, 0, "the shape asks for more bytes than the file has"},
      {good, 12, 0, "the last 4 bytes belong to no tensor"},
      {"{\"a\":{" + t + "[0,8]},\"b\":{" + t + "[4,12]}}", 12, 0, "overlap"},
      {"{\"a\":{" + t + "[0,8]},\"b\":{" + t + "[0,8]}}", 8, 0, "overlap"},
      {"{\"a\":{" + t + "[0,8]},\"b\":{" + t + "[12,20]}}", 20, 0, "belong to none"},
      {"{\"a\":{" + t + "[0,8]},\"a\":{" + t + "[8,16]}}", 16, 0, "'a' is there twice"},
      {R"({"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}})", 8, 0, "'dtype' is there twice"},
      {"{\"a\":{" + t + "[8,0]}}", 8, 0, "lie outside"},
      {"{\"a\":{" + t + "[0,18446744073709551615]}}", 8, 0, "lie outside"},
      {"{\"a\":{" + t + "[0,4]}}", 8, 0, "has 4 bytes, its shape and dtype make 8"},
      {"{\"a\":{" + t + "[-8,0]}}", 8, 0, "is not a whole number"},
      {"{\"a\":{" + t + "[0,8.5]}}", 8, 0, "is not a whole number"},
      {"{\"a\":{" + t + "[0]}}", 8, 0, "are not two numbers"},
      {R"({"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})", 8, 0, "the dtype 'F33' is not known"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", 8, 0, "more bytes than"},
      {R"({"a":{"dtype":"F32","shape":[99999999999999999999999],"data_offsets":[0,8]}})", 8, 0,
       "is not a whole number"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, 0, "a dimension is not a whole number"},
      {R"({"a":{"dtype":"F32","shape":[2]}})", 8, 0, "has not exactly dtype, shape and data_offsets"},
      {R"({"a":7})", 0, 0, "has not exactly dtype, shape and data_offsets"},
      {R"({"__metadata__":{"a":1}})", 0, 0, "something other than words"},
      {"{\"a\":" + std::string(3000, '[') + std::string(3000, ']') + "}", 0, 0, "nested deeper"},
  };
  for (const Case& c : cases) {
    const std::string said = error_of(write(c.header, c.data, c.claimed));
    EXPECT_NE(said.find(c.says), std::string::npos) << c.header.substr(0, 200) << "\n-> " << said;
    EXPECT_EQ(said.find('\n'), std::string::npos) << said;
  }
}

TEST_F(Safetensors, EveryTruncationIsRefused) {
  const std::string path = write(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  std::ifstream in(path, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  for (std::size_t n = 0; n < whole.size(); ++n) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << whole.substr(0, n);
    EXPECT_NE(error_of(path), "") << n << " of " << whole.size() << " bytes";
  }
}

TEST_F(Safetensors, AnIndexLeadsToShardsOfItsOwnFolder) {
  const std::vector<float> values{1, 2};
  for (const char* name : {"model-1.safetensors", "model-2.safetensors"}) {
    SafetensorsWriter writer(at(name), {{std::string("t") + name[6], "F32", {2}}}, {});
    writer.add(std::string("t") + name[6], bytes_of(values));
    writer.finish();
  }
  const auto index = [&](const std::string& text) {
    std::ofstream(at("model.safetensors.index.json"), std::ios::trunc) << text;
    return error_of(folder_.string());
  };
  EXPECT_EQ(index(R"({"weight_map":{"t1":"model-1.safetensors","t2":"model-2.safetensors"}})"), "");
  EXPECT_EQ(SafetensorsSet(folder_).tensors().size(), 2u);
  EXPECT_NE(index(R"({"weight_map":{"t1":"model-2.safetensors"}})").find("'t1' is not in"), std::string::npos);
  EXPECT_NE(index(R"({"weight_map":{"t1":"model-3.safetensors"}})").find("model-3.safetensors is missing"),
            std::string::npos);
  EXPECT_NE(index(R"({"weight_map":{"t1":"../x.safetensors"}})").find("same folder"), std::string::npos);
  EXPECT_NE(index(R"({"weight_map":{"t1":"model-1.safetensors","t1":"model-2.safetensors"}})").find("twice"),
            std::string::npos);
  EXPECT_NE(index("{}").find("no weight_map"), std::string::npos);
  EXPECT_NE(index("").find("not valid JSON"), std::string::npos);
}

TEST_F(Safetensors, AFolderWithoutWeightsSaysSo) {
  EXPECT_NE(error_of(folder_.string()).find("has neither model.safetensors nor"), std::string::npos);
  std::ofstream(at("pytorch_model.bin")) << "x";
  EXPECT_NE(error_of(folder_.string()).find("pickle"), std::string::npos);
}

}  // namespace
}  // namespace sfa::hf
