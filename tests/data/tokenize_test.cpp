#include "data/tokenize.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>

#include "data/data_test.h"
#include "data/token_file.h"

namespace sfa {
namespace {

class TokenizeTest : public DataTest {
 protected:
  [[nodiscard]] TokenizeOptions options(const std::vector<std::string>& inputs) const {
    TokenizeOptions o;
    o.source.inputs = inputs;
    o.output.path = path("out.h5");
    o.output.force = true;
    return o;
  }
  // Tokenizes with raw bytes and gives back the text with '|' for end of text.
  std::string shown(const TokenizeOptions& o) const {
    tokenize(o, *load_tokenizer("bytes"));
    const TokenFile file(o.output.path);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(file.info().total_tokens));
    file.read(0, ids);
    std::string text;
    for (const auto id : ids) text += id == 256 ? '|' : static_cast<char>(id);
    return text;
  }
  [[nodiscard]] std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }
};

TEST_F(TokenizeTest, EachTextFileIsADocumentAndEachRecordIsOne) {
  write_file("a.txt", "one\n\ntwo");
  write_file("b.md", "three");
  write_file("empty.txt", "");
  write_file(
      "c.jsonl",
      "{\"text\": \"four\\n\"}\n\n  \n{\"id\": 1, \"text\": \"f\\u00fcnf\"}\r\n{\"text\": \"\"}\n{\"text\": \"six\"}");
  EXPECT_EQ(shown(options({path("a.txt"), path("b.md"), path("empty.txt"), path("c.jsonl")})),
            "|one\n\ntwo|three|four\n|f\xc3\xbcnf|six");
  EXPECT_EQ(TokenFile(path("out.h5")).document_starts(), (std::vector<std::int64_t>{0, 9, 15, 21, 27}));
}

TEST_F(TokenizeTest, AnotherFieldAndAnotherFormat) {
  write_file("c.data", "{\"body\": \"x\", \"text\": 1}\n{\"body\": \"y\"}\n");
  TokenizeOptions o = options({path("c.data")});
  o.source.format = TextFormat::jsonl;
  o.source.field = "body";
  EXPECT_EQ(shown(o), "|x|y");
  o.source.field = "text";
  expect_parts(error_of([&] { shown(o); }), {path("c.data"), "line 1", "'text'", "--field"});
  o.source.field = "nobody";
  expect_parts(error_of([&] { shown(o); }), {path("c.data"), "line 1", "'nobody'"});
}

TEST_F(TokenizeTest, HalvesOfSurrogatePairsBecomeReplacementCharacters) {
  write_file("c.jsonl", R"({"text": "a\ud83dz"})"
                        "\n"
                        R"({"text": "\ude00\ud83d\ude00 \\ud83d \uD83D\uD83D"})"
                        "\n"
                        R"({"text": "\u00e9\udfff"})");
  EXPECT_EQ(shown(options({path("c.jsonl")})),
            "|a\xef\xbf\xbdz|\xef\xbf\xbd\xf0\x9f\x98\x80 \\ud83d \xef\xbf\xbd\xef\xbf\xbd|\xc3\xa9\xef\xbf\xbd");
}

TEST_F(TokenizeTest, BrokenRecordsNameTheirLineAndNothingIsWritten) {
  write_file("c.jsonl", "{\"text\": \"x\"}\n{\"text\": \"y\n");
  TokenizeOptions o = options({path("c.jsonl")});
  expect_parts(error_of([&] { shown(o); }), {path("c.jsonl"), "line 2", "JSON"});
  write_file("c.jsonl", "[1]\n");
  expect_parts(error_of([&] { shown(o); }), {path("c.jsonl"), "line 1", "object"});
  EXPECT_EQ(files(), (std::vector<std::string>{"c.jsonl"}));
}

TEST_F(TokenizeTest, LongDocumentsAndManySmallOnesKeepTheirOrder) {
  std::mt19937 random(3);
  std::string expected, long_text(5'300'000, ' '), records;
  for (char& c : long_text) c = static_cast<char>(1 + random() % 120);
  write_file("long.txt", long_text);
  expected = "|" + long_text;
  for (int i = 0; i < 20000; ++i) {
    const std::string text = std::to_string(random());
    records += "{\"text\": \"" + text + "\"}\n";
    expected += "|" + text;
  }
  write_file("many.jsonl", records);
  for (const int threads : {1, 4}) {
    TokenizeOptions o = options({path("long.txt"), path("many.jsonl")});
    o.threads = threads;
    EXPECT_TRUE(shown(o) == expected) << threads;
  }
}

TEST_F(TokenizeTest, BadInputsAreNamedBeforeAnythingIsRead) {
  write_file("a.txt", "text");
  write_file("binary.txt", std::string("ab\0cd", 5));
  expect_parts(error_of([&] {
                 shown(options({path("a.txt"), path("none.txt")}));
               }),
               {path("none.txt"), "No such file"});
  expect_parts(error_of([&] { shown(options({folder_})); }), {folder_, "folder"});
  expect_parts(error_of([&] { shown(options({path("binary.txt")})); }),
               {path("binary.txt"), "zero byte", "--format txt"});
  expect_parts(error_of([&] { shown(options({})); }), {"no input"});
  expect_parts(error_of([&] { shown(options({"-", "-"})); }), {"standard input"});
  write_file("none.txt", "");
  expect_parts(error_of([&] { shown(options({path("none.txt")})); }), {path("out.h5"), "no text"});
  TokenizeOptions same = options({path("a.txt")});
  same.output.path = path("a.txt");
  expect_parts(error_of([&] { shown(same); }), {path("a.txt"), "one of the inputs"});
  EXPECT_EQ(read_file(path("a.txt")), "text");
  TokenizeOptions binary = options({path("binary.txt")});
  binary.source.format = TextFormat::text;
  EXPECT_EQ(shown(binary), std::string("|ab\0cd", 6));
}

TEST_F(TokenizeTest, AFailedRunLeavesTheOldFileAlone) {
  write_file("a.txt", "good");
  shown(options({path("a.txt")}));
  const std::string before = read_file(path("out.h5"));
  write_file("c.jsonl", "{\"text\": \"x\"}\n{");
  error_of([&] { shown(options({path("c.jsonl")})); });
  EXPECT_EQ(read_file(path("out.h5")), before);
  EXPECT_EQ(files(), (std::vector<std::string>{"a.txt", "c.jsonl", "out.h5"}));
}

TEST_F(TokenizeTest, TheSourceHashIsThatOfTheTextInOrder) {
  write_file("a.txt", "ab");
  write_file("b.txt", "cd");
  write_file("all.txt", "abcd");
  const auto hash = [&](const std::vector<std::string>& inputs) {
    return tokenize(options(inputs), *load_tokenizer("bytes")).files.front().source_hash;
  };
  const std::string expected = hash({path("all.txt")});
  EXPECT_EQ(expected.size(), 32u);
  EXPECT_EQ(hash({path("a.txt"), path("b.txt")}), expected);
  EXPECT_NE(hash({path("b.txt"), path("a.txt")}), expected);
}

// Compressed with the system's tools: gzip in two members, xz in two streams, zstd in two frames.
TEST_F(TokenizeTest, CompressedInputsAreReadWholeInAllTheirParts) {
  std::string records;
  std::mt19937 random(4);
  for (int i = 0; i < 30000; ++i) records += fmt::format("{{\"text\": \"{} {}\"}}\n", i, random());
  const std::size_t half = records.find("\n{\"text\": \"15000 ") + 1;
  write_file("a.jsonl", records.substr(0, half));
  write_file("b.jsonl", records.substr(half));
  const std::string expected = shown(options({path("a.jsonl"), path("b.jsonl")}));
  for (const auto& packer : {std::pair{"gzip", ".gz"}, {"xz", ".xz"}, {"zstd", ".zst"}}) {
    const char *tool = packer.first, *ending = packer.second;
    const std::string out = path("both.jsonl") + ending;
    const std::string command = fmt::format("command -v {0} > /dev/null && {0} -c {1} > {3} && {0} -c {2} >> {3}", tool,
                                            path("a.jsonl"), path("b.jsonl"), out);
    if (std::system(command.c_str()) != 0) {
      std::fprintf(stderr, "%s is not installed: %s is not tested\n", tool, ending);
      continue;
    }
    const auto refused = [&](const std::string& content, const char* why) {
      const std::string bad = write_file(std::string("bad.jsonl") + ending, content);
      expect_parts(error_of([&] { shown(options({bad})); }), {bad, why});
    };
    EXPECT_TRUE(shown(options({out})) == expected) << ending;
    std::string whole = read_file(out);
    refused(whole.substr(0, whole.size() - 9), "truncated");
    refused("this is not compressed at all", "damaged");
    for (std::size_t i = whole.size() / 2; i < whole.size() / 2 + 64; ++i) whole[i] = static_cast<char>(~whole[i]);
    refused(whole, "damaged");
  }
}

class ShardedTest : public TokenizeTest {
 protected:
  void SetUp() override {
    std::string records;
    for (int i = 0; i < 1000; ++i) records += fmt::format("{{\"text\": \"document {}\"}}\n", i);
    write_file("in.jsonl", records);
    write_file("long.txt", std::string(2'500'000, 'x'));
  }
  [[nodiscard]] TokenizeOptions sharded() const {
    TokenizeOptions o = options({path("in.jsonl"), path("long.txt"), path("in.jsonl")});
    o.output.force = false;
    o.output.val_fraction = 0.1;
    o.shard_tokens = 2000;
    return o;
  }
  [[nodiscard]] std::string all_tokens() const {
    std::string all;
    for (int i = 0; std::filesystem::exists(shard(i)); ++i) {
      const TokenFile file(shard(i));
      std::vector<std::int32_t> ids(static_cast<std::size_t>(file.info().total_tokens));
      file.read(0, ids);
      EXPECT_EQ(ids[0], 256) << "a shard begins with a document";
      for (const auto id : ids) all += id == 256 ? '|' : static_cast<char>(id);
    }
    return all;
  }
  [[nodiscard]] std::string shard(int i) const { return path(fmt::format("out_{:05}.h5", i)); }
};

TEST_F(ShardedTest, HoldTheSameTextInOrderAndEndAtDocuments) {
  const auto result = tokenize(sharded(), *load_tokenizer("bytes"));
  EXPECT_GT(result.files.size(), 10u);
  TokenizeOptions one = sharded();
  one.shard_tokens = 0;
  EXPECT_TRUE(shown(one) == all_tokens());
  for (const TokenFileInfo& info : result.files) EXPECT_LT(info.val_start, info.total_tokens);
}

TEST_F(ShardedTest, AreNotReplacedUnlessForcedAndThenNoneIsLeftOver) {
  const auto tokenizer = load_tokenizer("bytes");
  const std::size_t many = tokenize(sharded(), *tokenizer).files.size();
  expect_parts(error_of([&] { tokenize(sharded(), *tokenizer); }), {shard(0), "--force", "--resume"});
  TokenizeOptions fewer = sharded();
  fewer.output.force = true;
  fewer.shard_tokens = 4000;
  const std::size_t few = tokenize(fewer, *tokenizer).files.size();
  EXPECT_LT(few, many);
  EXPECT_FALSE(std::filesystem::exists(shard(static_cast<int>(few))));
}

TEST_F(ShardedTest, ResumedAfterAnyShardTheyAreTheSame) {
  const auto tokenizer = load_tokenizer("bytes");
  const auto count = static_cast<int>(tokenize(sharded(), *tokenizer).files.size());
  std::vector<std::string> expected;
  for (int i = 0; i < count; ++i) expected.push_back(read_file(shard(i)));
  TokenizeOptions again = sharded();
  again.resume = true;
  EXPECT_TRUE(tokenize(again, *tokenizer).files.empty()) << "nothing is left to do";
  for (const int kept : {0, 1, 5, count - 1}) {
    for (int i = kept; i < count; ++i) std::filesystem::remove(shard(i));
    EXPECT_EQ(tokenize(again, *tokenizer).files.size(), static_cast<std::size_t>(count - kept));
    for (int i = 0; i < count; ++i)
      EXPECT_TRUE(read_file(shard(i)) == expected[static_cast<std::size_t>(i)]) << kept << " " << i;
  }
}

TEST_F(ShardedTest, ResumingWithOtherInputsIsRefused) {
  const auto tokenizer = load_tokenizer("bytes");
  const auto count = static_cast<int>(tokenize(sharded(), *tokenizer).files.size());
  for (int i = 3; i < count; ++i) std::filesystem::remove(shard(i));
  TokenizeOptions again = sharded();
  again.resume = true;
  again.source.inputs.pop_back();
  expect_parts(error_of([&] { tokenize(again, *tokenizer); }), {shard(0), "other inputs"});
  again = sharded();
  again.resume = true;
  std::string records = read_file(path("in.jsonl"));
  records[records.find("document 7\"")] = 'D';
  write_file("in.jsonl", records);
  expect_parts(error_of([&] { tokenize(again, *tokenizer); }), {shard(0), "have changed"});
  again.shard_tokens = 0;
  expect_parts(error_of([&] { tokenize(again, *tokenizer); }), {"--resume", "--shard-tokens"});
}

// From text to a vocabulary, a token file and back to text, by the program itself.
TEST_F(TokenizeTest, AVocabularyLearntHereTokenizesAndIsShownFromTheFileAlone) {
  std::string text;
  for (int i = 0; i < 300; ++i)
    text += "The quick brown fox, number " + std::to_string(i) + ", jumps over the lazy dog.\n";
  write_file("a.txt", text);
  const std::string sfa = std::string(SFA_BINARY) + " data ", quiet = " > " + path("log") + " 2>&1";
  ASSERT_EQ(std::system(
                (sfa + "train-tokenizer --vocab-size 300 -o " + path("t.json") + " " + path("a.txt") + quiet).c_str()),
            0)
      << read_file(path("log"));
  EXPECT_NE(std::system((sfa + "train-tokenizer -o " + path("t.json") + " " + path("a.txt") + quiet).c_str()), 0);
  expect_parts(read_file(path("log")), {path("t.json"), "exists already", "--force"});
  ASSERT_EQ(
      std::system((sfa + "tokenize --tokenizer " + path("t.json") + " -o " + path("a.h5") + " " + path("a.txt") + quiet)
                      .c_str()),
      0)
      << read_file(path("log"));
  std::filesystem::remove(path("t.json"));
  const TokenFile file(path("a.h5"));
  EXPECT_EQ(file.info().vocab_size, 300);
  EXPECT_LT(file.info().total_tokens, static_cast<std::int64_t>(text.size()) / 2);
  ASSERT_EQ(std::system((sfa + "info " + path("a.h5") + " --at 1 --count 1000000 --json > " + path("log")).c_str()), 0);
  const auto json = nlohmann::json::parse(read_file(path("log")));
  EXPECT_EQ(json["text"], text);
  EXPECT_EQ(json["vocab_size"], 300);
}

// Runs `sfa` with the arguments, standard input from `feed` when it is a valid descriptor; the child's id.
pid_t start(const std::vector<std::string>& arguments, int feed) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  if (feed >= 0) ::dup2(feed, 0);
  const int null = ::open("/dev/null", O_WRONLY);
  ::dup2(null, 1);
  ::dup2(null, 2);
  std::vector<char*> argv{const_cast<char*>(SFA_BINARY)};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

// The child is fed text without end, so that it is certainly at work when it is killed; and killed again while it
// finishes.
TEST_F(TokenizeTest, KilledAtAnyMomentItLeavesNothingThatOpens) {
  write_file("a.txt", std::string(3'000'000, 'x'));
  const std::string out = path("out.h5");
  for (int i = 0; i < 12; ++i) {
    int pipe_ends[2];
    ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC | O_NONBLOCK), 0);  // a child that does not read must not hang the test
    ::fcntl(pipe_ends[0], F_SETFL, 0);
    const bool endless = i < 4;
    const pid_t child = endless ? start({"data", "tokenize", "--output", out, "-"}, pipe_ends[0])
                                : start({"data", "tokenize", "--output", out, path("a.txt")}, -1);
    if (endless) {
      const std::string text(1 << 20, 'x');
      for (int block = 0; block < 20 * (1 + i); ++block) {
        (void)!::write(pipe_ends[1], text.data(), text.size());
        ::usleep(1000);
      }
    } else {
      ::usleep(static_cast<useconds_t>(3000 * (i - 3)));
    }
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    ::close(pipe_ends[0]);
    ::close(pipe_ends[1]);
    if (endless) {
      EXPECT_FALSE(std::filesystem::exists(out));
    } else if (std::filesystem::exists(out)) {  // it was through before the signal came
      EXPECT_NO_THROW(TokenFile(out).verify());
      std::filesystem::remove(out);
    }
    for (const std::string& name : files()) EXPECT_TRUE(name == "a.txt" || name.front() == '.') << name;
  }
}

TEST_F(TokenizeTest, MemoryDoesNotGrowWithTheText) {
  std::string line = "{\"text\": \"0123456789\"}\n", text;
  while (text.size() < (1 << 20)) text += line;
  // Tokenizes so many mebibytes; the largest resident memory of the program, in kB.
  const auto peak = [&](int blocks, const std::string& out) {
    int pipe_ends[2];
    EXPECT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
    const pid_t child = start({"data", "tokenize", "--threads", "2", "--output", out, "-"}, pipe_ends[0]);
    ::close(pipe_ends[0]);
    for (int i = 0; i < blocks; ++i)
      if (::write(pipe_ends[1], text.data(), text.size()) != static_cast<ssize_t>(text.size())) break;
    ::close(pipe_ends[1]);
    int status = 0;
    struct rusage usage {};
    ::wait4(child, &status, 0, &usage);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(TokenFile(out).info().total_tokens, static_cast<std::int64_t>(blocks * text.size() + 1));
    return usage.ru_maxrss;
  };
  // What the program and its libraries need before any text counts for neither.
  [[maybe_unused]] const long little = peak(1, path("little.h5"));
  [[maybe_unused]] const long much = peak(200, path("much.h5"));
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_LT(much - little, 90 * 1024) << "kB, for 200 MB of text";
#endif
}

}  // namespace
}  // namespace sfa
