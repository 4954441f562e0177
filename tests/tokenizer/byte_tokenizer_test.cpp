#include <gtest/gtest.h>

#include "core/error.h"
#include "tokenizer/tokenizer.h"

namespace sfa {
namespace {

TEST(ByteTokenizer, EveryByteIsItsOwnIdAndComesBack) {
  const auto tokenizer = load_tokenizer("bytes");
  std::string all;
  for (int i = 0; i < 256; ++i) all.push_back(static_cast<char>(i));
  std::vector<std::uint32_t> ids{7};  // encode appends
  tokenizer->encode(all, ids);
  ASSERT_EQ(ids.size(), 257u);
  EXPECT_EQ(ids[0], 7u);
  for (std::uint32_t i = 0; i < 256; ++i) EXPECT_EQ(ids[i + 1], i);
  EXPECT_EQ(tokenizer->decode(std::span(ids).subspan(1)), all);
}

TEST(ByteTokenizer, VocabularyAndEndOfText) {
  const auto tokenizer = load_tokenizer("bytes");
  EXPECT_EQ(tokenizer->name(), "bytes");
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->end_of_text(), 256u);
  EXPECT_EQ(tokenizer->token_bytes(256), "<|endoftext|>");
  EXPECT_THROW(static_cast<void>(tokenizer->token_bytes(257)), Error);
}

// The hash is stored in shards: a change of it would orphan every file written so far.
TEST(ByteTokenizer, HashIsStable) {
  EXPECT_EQ(load_tokenizer("bytes")->hash(), "2e8ea96472727a96");
}

TEST(LoadTokenizer, AnUnknownNameIsOneSentence) {
  try {
    static_cast<void>(load_tokenizer("byts"));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("'byts'"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace sfa
