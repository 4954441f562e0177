#include "tokenizer/bpe_tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "core/error.h"
#include "tokenizer/bpe_files.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace sfa {
namespace {

const std::string kGolden = std::string(SFA_SOURCE_DIR) + "/tests/tokenizer/golden/";

std::vector<std::uint32_t> ids_of(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::uint32_t> ids;
  tokenizer.encode(text, ids);
  return ids;
}

std::string fnv(const std::vector<std::uint32_t>& ids) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const std::uint32_t id : ids) hash = (hash ^ id) * 0x100000001B3u;
  return fmt::format("{:016x}", hash);
}

std::string repeated(const std::string& text, std::size_t times) {
  std::string all;
  for (std::size_t i = 0; i < times; ++i) all += text;
  return all;
}

// Every golden text under the key `name`: the same ids as the packages, and back to the (normalised) text.
void check_golden(const std::string& spec, const std::string& name, bool nfc) {
  const auto tokenizer = load_tokenizer(spec);
  const auto cases = nlohmann::json::parse(std::ifstream(kGolden + "cases.json"));
  ASSERT_GT(cases.size(), 90u);
  for (const auto& entry : cases) {
    const std::string text = repeated(entry["text"].get<std::string>(), entry.value("repeat", std::size_t{1}));
    const auto ids = ids_of(*tokenizer, text);
    if (entry.contains("repeat")) {
      ASSERT_TRUE(entry["count"].contains(name));
      EXPECT_EQ(ids.size(), entry["count"][name].get<std::size_t>()) << entry["text"];
      EXPECT_EQ(fnv(ids), entry["fnv"][name].get<std::string>()) << entry["text"];
    } else {
      ASSERT_TRUE(entry["ids"].contains(name));
      EXPECT_EQ(ids, entry["ids"][name].get<std::vector<std::uint32_t>>()) << entry["text"];
    }
    EXPECT_TRUE(tokenizer->decode(ids) == (nfc ? normalize_nfc(text) : text)) << entry["text"];
  }
}

TEST(BpeTokenizer, SmallGpt2TokenizerJsonIsAsInThePackage) {
  check_golden(kGolden + "small_gpt2.json", "small_gpt2", false);
}
TEST(BpeTokenizer, SmallVocabAndMergesAreTheSameTokenizer) {
  check_golden(kGolden + "small_vocab", "small_gpt2", false);
  check_golden(kGolden + "small_vocab/vocab.json", "small_gpt2", false);
}
TEST(BpeTokenizer, SmallQwenTokenizerJsonIsAsInThePackage) {
  check_golden(kGolden + "small_qwen.json", "small_qwen", true);
}

// SFA_TOKENIZERS: a folder with gpt2/{vocab.json,merges.txt} and qwen/qwen.tiktoken.
TEST(BpeTokenizer, RealVocabulariesAreAsInThePackages) {
  const char* folder = std::getenv("SFA_TOKENIZERS");
  if (folder == nullptr) GTEST_SKIP() << "set SFA_TOKENIZERS to a folder with gpt2/ and qwen/ to run this";
  check_golden(std::string(folder) + "/gpt2", "gpt2", false);
  check_golden(std::string(folder) + "/qwen/qwen.tiktoken", "qwen", true);
  EXPECT_EQ(load_tokenizer(std::string(folder) + "/gpt2")->end_of_text(), 50256u);
  EXPECT_EQ(load_tokenizer(std::string(folder) + "/qwen/qwen.tiktoken")->end_of_text(), 151643u);
}

// The same vocabulary as transformers' converter writes it, made by Python (SFA_PYTHON) with the package tokenizers.
TEST(BpeTokenizer, QwensTokenizerJsonIsItsTiktokenFile) {
  const char *folder = std::getenv("SFA_TOKENIZERS"), *named = std::getenv("SFA_PYTHON");
  if (folder == nullptr) GTEST_SKIP() << "set SFA_TOKENIZERS to a folder with gpt2/ and qwen/ to run this";
  namespace fs = std::filesystem;
  const fs::path made = fs::temp_directory_path() / ("sfa_qwen_json_" + std::to_string(::getpid()));
  fs::create_directories(made / "lone");
  const std::string ranks = std::string(folder) + "/qwen/qwen.tiktoken";
  const std::string command = std::string("PYTHONDONTWRITEBYTECODE=1 ") + (named ? named : "python3") + " " + kGolden +
                              "make_qwen_json.py " + ranks + " " + (made / "tokenizer.json").string() + " 2>/dev/null";
  const bool there = std::system(command.c_str()) == 0;
  if (there) {
    check_golden(made.string(), "qwen", true);
    fs::copy_file(ranks, made / "lone/qwen.tiktoken");
    const auto json = load_tokenizer(made.string()), tiktoken = load_tokenizer((made / "lone").string());
    EXPECT_EQ(json->vocab_size(), 151669);
    EXPECT_EQ(json->end_of_text(), 151643u);
    EXPECT_EQ(json->token_bytes(151645), "<|im_end|>");
    EXPECT_EQ(json->token_bytes(151668), "</think>");
    EXPECT_NE(json->hash(), tiktoken->hash());
    EXPECT_TRUE(same_ids(*json, *tiktoken));
    EXPECT_FALSE(same_ids(*json, *load_tokenizer(std::string(folder) + "/gpt2")));
  }
  fs::remove_all(made);
  if (!there) GTEST_SKIP() << "no Python with the packages tokenizers and tiktoken; SFA_PYTHON names one";
}

TEST(BpeTokenizer, SameIdsLooksPastTheFormat) {
  const auto json = load_tokenizer(kGolden + "small_gpt2.json"), files = load_tokenizer(kGolden + "small_vocab"),
             qwen = load_tokenizer(kGolden + "small_qwen.json"), bytes = load_tokenizer("bytes");
  EXPECT_TRUE(same_ids(*json, *files));
  EXPECT_TRUE(same_ids(*bytes, *bytes));
  EXPECT_FALSE(same_ids(*json, *qwen));
  EXPECT_FALSE(same_ids(*bytes, *json));
  // The same vocabulary, but one merge fewer.
  nlohmann::json definition = nlohmann::json::parse(std::ifstream(kGolden + "small_gpt2.json"));
  definition["model"]["merges"].erase(0);
  const auto path = std::filesystem::temp_directory_path() / ("sfa_merges_" + std::to_string(::getpid()) + ".json");
  std::ofstream(path) << definition.dump();
  EXPECT_FALSE(same_ids(*json, *load_tokenizer(path.string())));
  std::filesystem::remove(path);
}

TEST(BpeTokenizer, EndOfTextAndVocabulary) {
  const auto tokenizer = load_tokenizer(kGolden + "small_gpt2.json");
  EXPECT_EQ(tokenizer->vocab_size(), 439);
  EXPECT_EQ(tokenizer->token_bytes(tokenizer->end_of_text()), "<|endoftext|>");
  const auto ids = ids_of(*tokenizer, "<|endoftext|>");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), tokenizer->end_of_text()), 0) << "text must not become a special token";
  EXPECT_EQ(tokenizer->decode(ids), "<|endoftext|>");
}

TEST(BpeTokenizer, TheHashTellsTokenizersApartAndFormatsOfOneAlike) {
  const auto json = load_tokenizer(kGolden + "small_gpt2.json"), files = load_tokenizer(kGolden + "small_vocab"),
             qwen = load_tokenizer(kGolden + "small_qwen.json");
  EXPECT_EQ(json->hash(), files->hash());
  EXPECT_NE(json->hash(), qwen->hash());
}

TEST(BpeTokenizer, InvalidUtf8ComesBackByteForByte) {
  std::mt19937 random(5);
  for (const char* name : {"small_gpt2.json", "small_qwen.json"}) {
    const auto tokenizer = load_tokenizer(kGolden + name);
    for (const std::string text :
         {"\xff", "a\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe4\xb8 \x96", "ok \x80\x80 ok"})
      EXPECT_EQ(tokenizer->decode(ids_of(*tokenizer, text)), text);
    for (int i = 0; i < 300; ++i) {
      std::string text(random() % 200, ' ');
      for (char& c : text) c = static_cast<char>(random());
      const std::string back = tokenizer->decode(ids_of(*tokenizer, text));
      if (name[6] == 'g') {  // NFC may change the valid characters among them
        EXPECT_EQ(back, text);
      }
    }
  }
}

// Cutting at safe_prefix changes nothing, wherever the text is cut off before.
TEST(BpeTokenizer, PiecesUpToTheSafePrefixEncodeLikeTheWhole) {
  std::mt19937 random(9);
  const std::vector<std::string> parts{"word",        " word", "  ", " ",   "'s",           "\n", " 12",  "\xc3\xa9",
                                       " e\xcc\x81t", "3",     ".",  " (x", "\xe4\xb8\x96", "\t", " I'll"};
  for (const char* name : {"small_gpt2.json", "small_qwen.json"}) {
    const auto tokenizer = load_tokenizer(kGolden + name);
    int cuts = 0;
    for (int i = 0; i < 400; ++i) {
      std::string text;
      for (int k = 0; k < 30; ++k) text += parts[random() % parts.size()];
      const std::size_t safe = tokenizer->safe_prefix(std::string_view(text).substr(0, random() % text.size()));
      cuts += safe > 0;
      auto ids = ids_of(*tokenizer, std::string_view(text).substr(0, safe));
      tokenizer->encode(std::string_view(text).substr(safe), ids);
      EXPECT_EQ(ids, ids_of(*tokenizer, text)) << text << " at " << safe;
    }
    EXPECT_GT(cuts, 100);
  }
}

TEST(BpeTokenizer, ManyThreadsAndManyTokenizersShareCachesSafely) {
  const auto a = load_tokenizer(kGolden + "small_gpt2.json"), b = load_tokenizer(kGolden + "small_qwen.json");
  const std::string text = repeated("unheard of antidisestablishmentarianism 12 don't ", 50);
  const auto expected_a = ids_of(*a, text), expected_b = ids_of(*b, text);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        EXPECT_EQ(ids_of(*a, text), expected_a);
        EXPECT_EQ(ids_of(*b, text), expected_b);
      }
    });
  for (auto& thread : threads) thread.join();
}

// The heap and the scan give the same merges: words around the length at which they change over, against themselves in
// text where the reference is the scan.
TEST(BpeMerger, LongWordsMergeLikeShortOnes) {
  std::array<std::uint32_t, 256> bytes;
  for (std::uint32_t i = 0; i < 256; ++i) bytes[i] = i;
  std::mt19937 random(1);
  std::vector<BpeMerge> merges;
  for (std::uint32_t rank = 0; rank < 200; ++rank) {
    const auto left = static_cast<std::uint32_t>(rank < 20 ? 'a' + random() % 3 : 256 + random() % rank);
    const auto right = static_cast<std::uint32_t>(rank % 3 == 0 ? 'a' + random() % 3 : 256 + random() % (rank + 1));
    merges.push_back({left, right, 256 + rank, rank});
  }
  const BpeMerger merger(bytes, merges);
  // Reference: repeat "merge the leftmost pair of lowest rank" on plain vectors.
  const auto reference = [&](const std::string& word) {
    std::vector<std::uint32_t> ids(word.begin(), word.end());
    for (;;) {
      const BpeMerge* best = nullptr;
      std::size_t at = 0;
      for (std::size_t i = 0; i + 1 < ids.size(); ++i)
        for (const BpeMerge& m : merges)
          if (m.left == ids[i] && m.right == ids[i + 1] && (best == nullptr || m.rank < best->rank)) best = &m, at = i;
      if (best == nullptr) return ids;
      ids[at] = best->merged;
      ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
  };
  for (int i = 0; i < 300; ++i) {
    std::string word(1 + random() % 120, 'a');
    for (char& c : word) c = static_cast<char>('a' + random() % 3);
    std::vector<std::uint32_t> ids;
    merger.merge(word, ids);
    EXPECT_EQ(ids, reference(word)) << word;
  }
}

class BadTokenizerFile : public ::testing::Test {
 protected:
  BadTokenizerFile() {
    std::string name = (std::filesystem::temp_directory_path() / "sfa-test-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
    good_ = nlohmann::json::parse(std::ifstream(kGolden + "small_gpt2.json"));
  }
  ~BadTokenizerFile() override { std::filesystem::remove_all(folder_); }
  [[nodiscard]] std::string error_of(const std::string& name, const std::string& content) const {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path, std::ios::binary) << content;
    try {
      static_cast<void>(load_tokenizer(path));
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(folder_), std::string::npos) << error.what();
      return error.what();
    }
    ADD_FAILURE() << "no error for " << content.substr(0, 80);
    return "";
  }
  [[nodiscard]] std::string error_with(const std::function<void(nlohmann::json&)>& change) const {
    nlohmann::json changed = good_;
    change(changed);
    return error_of("t.json", changed.dump());
  }
  std::string folder_;
  nlohmann::json good_;
};

TEST_F(BadTokenizerFile, IsNamedInOneSentence) {
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  EXPECT_TRUE(has(error_of("t.json", ""), "empty"));
  EXPECT_TRUE(has(error_of("t.json", "{"), "JSON"));
  EXPECT_TRUE(has(error_of("t.json", "{}"), "BPE model"));
  EXPECT_TRUE(has(error_of("t.bin", "x"), "unknown kind"));
  EXPECT_TRUE(has(error_with([](auto& j) { j["model"]["type"] = "Unigram"; }), "Unigram"));
  EXPECT_TRUE(has(error_with([](auto& j) { j["model"]["merges"][5] = "nospace"; }), "merge 6"));
  EXPECT_TRUE(has(error_with([](auto& j) { j["model"]["merges"][5] = "zz qq"; }), "lacks"));
  EXPECT_TRUE(has(error_with([](auto& j) { j["model"]["vocab"]["a"] = 7; }), "the id 7"));
  EXPECT_TRUE(has(error_with([](auto& j) { j["model"]["vocab"]["a"] = -7; }), "out of range"));
  EXPECT_TRUE(has(error_with([](auto& j) { j["model"]["vocab"]["a"] = "x"; }), "not a number"));
  EXPECT_TRUE(has(error_with([](auto& j) { j["model"]["vocab"]["\u4e16"] = 700; }), "byte alphabet"));
  EXPECT_TRUE(has(error_with([](auto& j) {
                    j["model"]["vocab"].erase("a");
                    j["model"]["merges"] = nlohmann::json::array();
                  }),
                  "0x61"));
  EXPECT_TRUE(has(error_with([](auto& j) { j["normalizer"] = {{"type", "Lowercase"}}; }), "Lowercase"));
  EXPECT_TRUE(has(error_with([](auto& j) { j["pre_tokenizer"] = {{"type", "Whitespace"}}; }), "Whitespace"));
  EXPECT_TRUE(has(error_with([](auto& j) { j["pre_tokenizer"]["add_prefix_space"] = true; }), "add_prefix_space"));
  EXPECT_TRUE(has(error_with([](auto& j) {
                    j["pre_tokenizer"] = {
                        {"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}, {"invert", false}};
                  }),
                  "PCRE2"));
  EXPECT_TRUE(has(error_with([](auto& j) {
                    j["model"]["vocab"].erase("<|endoftext|>");
                    j["added_tokens"] = nlohmann::json::array();
                  }),
                  "end-of-text"));
  EXPECT_TRUE(has(error_of("t.tiktoken", "IQ== 0\n!! 1\n"), "line 2"));
  EXPECT_TRUE(has(error_of("t.tiktoken", "IQ== 0\nIg== x\n"), "line 2"));
  EXPECT_TRUE(has(error_of("t.tiktoken", "IQ== 0\n"), "1 ranks"));
  EXPECT_TRUE(has(error_of("vocab.json", "{\"a\": 0}"), "merges.txt"));
}

// A pattern of one's own: what it does not match is a word as well, and matches may be empty.
TEST_F(BadTokenizerFile, APatternOfOnesOwnKeepsAllText) {
  for (const char* pattern : {"[a-z]+", "x*", "(?=b)", "\\S+|\\s+", "."}) {
    nlohmann::json changed = good_;
    changed["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}},
          {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
    std::ofstream(folder_ + "/own.json") << changed.dump();
    const auto tokenizer = load_tokenizer(folder_ + "/own.json");
    const std::string text = "abc xx 12\n\xe4\xb8\x96\xe7\x95\x8c bb \xf0\x9f\x98\x80";
    EXPECT_EQ(tokenizer->decode(ids_of(*tokenizer, text)), text) << pattern;
    EXPECT_EQ(tokenizer->safe_prefix(text), 0u);
  }
}

TEST(Unicode, ValidPrefix) {
  EXPECT_EQ(valid_utf8_prefix("abc"), 3u);
  EXPECT_EQ(valid_utf8_prefix("\xc3\xa9\xe4\xb8\x96\xf0\x9f\x98\x80"), 9u);
  EXPECT_EQ(valid_utf8_prefix("0123456789\xff"), 10u);
  EXPECT_EQ(valid_utf8_prefix("a\xe4\xb8"), 1u);
  EXPECT_EQ(valid_utf8_prefix("a\xed\xa0\x80"), 1u);
  EXPECT_EQ(valid_utf8_prefix("\xf0\x80\x80\x80"), 0u);
  EXPECT_EQ(valid_utf8_prefix("\xf4\x8f\xbf\xbf"), 4u);
}

TEST(Unicode, NfcOfRunsBetweenAscii) {
  EXPECT_EQ(normalize_nfc("plain"), "plain");
  EXPECT_EQ(normalize_nfc("xe\xcc\x81y"), "x\xc3\xa9y");
  EXPECT_EQ(normalize_nfc("\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab"), "\xed\x95\x9c");  // Hangul jamo
  EXPECT_EQ(normalize_nfc("\xe2\x84\xab"), "\xc3\x85");                              // Angstrom sign
  EXPECT_EQ(normalize_nfc(std::string("a\0\xcc\x81", 4)), std::string("a\0\xcc\x81", 4));
}

}  // namespace
}  // namespace sfa
