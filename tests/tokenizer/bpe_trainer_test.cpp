#include "tokenizer/bpe_trainer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "core/error.h"
#include "tokenizer/bpe_files.h"
#include "tokenizer/tokenizer.h"

namespace sfa {
namespace {

const std::string kGolden = std::string(SFA_SOURCE_DIR) + "/tests/tokenizer/golden/";

BpeDefinition train_golden(std::string_view pattern, bool nfc, std::int64_t vocab_size) {
  BpeTrainer trainer(pattern, nfc);
  const auto texts = nlohmann::json::parse(std::ifstream(kGolden + "training.json"));
  for (int i = 0; i < 20; ++i)
    for (const auto& text : texts) trainer.add(text.get<std::string>());
  return trainer.train(vocab_size);
}

std::vector<std::pair<std::string, std::string>> merges_of(const BpeDefinition& d) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (const BpeMerge& m : d.merges) merges.emplace_back(d.tokens[m.left], d.tokens[m.right]);
  return merges;
}

TEST(BpeTrainer, LearnsTheMergesThatTheTokenizersPackageLearns) {
  const BpeDefinition gpt2 = train_golden(kGpt2Pattern, false, 600), qwen = train_golden(kQwenPattern, true, 600);
  EXPECT_EQ(gpt2.tokens.size(), 439u) << "no pair is left";
  EXPECT_EQ(merges_of(gpt2), merges_of(read_tokenizer_json(kGolden + "small_gpt2.json")));
  EXPECT_EQ(merges_of(qwen), merges_of(read_tokenizer_json(kGolden + "small_qwen.json")));
}

TEST(BpeTrainer, StopsAtTheSizeAskedFor) {
  const BpeDefinition d = train_golden(kGpt2Pattern, false, 300);
  EXPECT_EQ(d.tokens.size(), 300u);
  EXPECT_EQ(d.merges.size(), 43u);
  EXPECT_EQ(d.tokens[d.end_of_text], "<|endoftext|>");
  EXPECT_EQ(d.end_of_text, 299u);
  EXPECT_THROW(static_cast<void>(train_golden(kGpt2Pattern, false, 256)), Error);
}

TEST(BpeTrainer, WhatItLearntIsLoadedAgainAndEncodesAlike) {
  std::string name = (std::filesystem::temp_directory_path() / "sfa-test-XXXXXX").string();
  const std::string folder = ::mkdtemp(name.data());
  for (const bool qwen : {false, true}) {
    BpeDefinition d = train_golden(qwen ? kQwenPattern : kGpt2Pattern, qwen, 350);
    std::ofstream(folder + "/t.json") << tokenizer_json(d);
    d.name = "learnt";
    const BpeTokenizer direct(d);
    const auto loaded = load_tokenizer(folder + "/t.json");
    EXPECT_EQ(loaded->hash(), direct.hash());
    EXPECT_EQ(loaded->end_of_text(), 349u);
    const std::string text = "it's trained on a few sentences, and 123 more: \xc3\xa9\xe4\xbd\xa0 e\xcc\x81";
    std::vector<std::uint32_t> a, b;
    direct.encode(text, a);
    loaded->encode(text, b);
    EXPECT_EQ(a, b);
    EXPECT_LT(a.size(), text.size());
  }
  std::filesystem::remove_all(folder);
}

// Against the definition, done naively: count all pairs, take the most frequent, lowest ids first, merge, begin again.
TEST(BpeTrainer, AgreesWithCountingAfreshAfterEachMerge) {
  std::mt19937 random(2);
  BpeTrainer trainer(kGpt2Pattern, false);
  std::vector<std::vector<std::string>> words;
  for (int i = 0; i < 400; ++i) {
    std::string word(1 + random() % 12, 'a');
    for (char& c : word) c = static_cast<char>('a' + random() % 3);
    trainer.add(word);
    std::vector<std::string>& parts = words.emplace_back();
    for (const char c : word) parts.emplace_back(1, c);
  }
  const BpeDefinition d = trainer.train(256 + 60 + 1);
  ASSERT_EQ(d.merges.size(), 60u);
  std::map<std::string, std::size_t> id;
  for (std::size_t i = 0; i < d.tokens.size(); ++i) id[d.tokens[i]] = i;
  for (const auto& [left, right] : merges_of(d)) {
    std::map<std::pair<std::string, std::string>, int> counts;
    for (const auto& parts : words)
      for (std::size_t i = 0; i + 1 < parts.size(); ++i) ++counts[{parts[i], parts[i + 1]}];
    auto best = counts.begin();
    for (auto it = counts.begin(); it != counts.end(); ++it) {
      const auto a = std::pair(id[it->first.first], id[it->first.second]),
                 b = std::pair(id[best->first.first], id[best->first.second]);
      if (it->second > best->second || (it->second == best->second && a < b)) best = it;
    }
    ASSERT_EQ(std::pair(left, right), best->first);
    for (auto& parts : words)
      for (std::size_t i = 0; i + 1 < parts.size(); ++i)
        if (parts[i] == left && parts[i + 1] == right) {
          parts[i] += right;
          parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i) + 1);
        }
  }
}

TEST(BpeTrainer, InvalidUtf8IsLeftOut) {
  BpeTrainer trainer(kGpt2Pattern, false);
  for (int i = 0; i < 10; ++i)
    trainer.add(
        "ab\xff\xff\xfe"
        "ab");
  const BpeDefinition d = trainer.train(1000);
  ASSERT_EQ(d.merges.size(), 1u);
  EXPECT_EQ(d.tokens[d.merges[0].merged], "ab");
}

}  // namespace
}  // namespace sfa
