// What the data tests share: a folder that vanishes, files in it, small shards of known content.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "core/error.h"
#include "data/token_writer.h"
#include "tokenizer/tokenizer.h"

namespace sfa {

class DataTest : public ::testing::Test {
 protected:
  DataTest() {
    std::string name = (std::filesystem::temp_directory_path() / "sfa-test-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
  }
  ~DataTest() override { std::filesystem::remove_all(folder_); }

  [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }

  std::string write_file(const std::string& name, const std::string& content) const {
    std::ofstream(path(name), std::ios::binary) << content;
    return path(name);
  }
  static std::string read_file(const std::string& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  /// A shard of the byte tokenizer whose documents have the lengths given (end of text included); token i of the file
  /// is i % 251 but for the documents' first.
  std::string write_shard(const std::string& name, const std::vector<int>& documents, double val_fraction = 0.0) const {
    const auto tokenizer = load_tokenizer("bytes");
    TokenWriter writer({path(name), val_fraction, true}, *tokenizer);
    std::uint32_t position = 0;
    for (const int length : documents) {
      writer.begin_document();
      ++position;
      std::vector<std::uint32_t> ids;
      for (int i = 1; i < length; ++i) ids.push_back(position++ % 251);
      writer.append(ids);
    }
    writer.finish({"generated"}, "0");
    return path(name);
  }

  /// The message of the Error that `action` throws; fails the test when it throws none.
  template <class Action>
  static std::string error_of(Action action) {
    try {
      action();
    } catch (const Error& error) {
      return error.what();
    }
    ADD_FAILURE() << "no error was thrown";
    return "";
  }

  std::string folder_;
};

/// EXPECT that text contains every part.
inline void expect_parts(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' in: " << text;
}

}  // namespace sfa
