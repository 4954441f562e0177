// Which tokens are answers: from records to ranges in the file, and on to the targets of batches.
#include "data/answers.h"

#include "core/hdf5.h"
#include "data/data_test.h"
#include "data/loader.h"
#include "data/needle.h"
#include "data/tokenize.h"

namespace sfa {
namespace {

using Bounds = std::vector<std::int64_t>;

class AnswersTest : public DataTest {
 protected:
  [[nodiscard]] TokenizeOptions options(const std::vector<std::string>& inputs) const {
    TokenizeOptions o;
    o.source.inputs = inputs;
    o.source.field = "prompt";
    o.source.answer_field = "completion";
    o.output.path = path("out.h5");
    o.output.force = true;
    return o;
  }
  // 200 records of prompts and answers of many lengths, every seventh without an answer.
  std::string records() const {
    std::string text;
    for (int i = 0; i < 200; ++i)
      text += fmt::format("{{\"prompt\": \"{}\", \"completion\": \"{}\"}}\n",
                          std::string(static_cast<std::size_t>(1 + i % 11), 'p'),
                          i % 7 == 0 ? std::string() : std::string(static_cast<std::size_t>(1 + i * i % 5), 'a'));
    return write_file("records.jsonl", text);
  }
  // Is the token at each position of the file an answer, as its text says ('a', or end of text behind one)?
  static std::vector<bool> wanted(const TokenFile& file) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(file.info().total_tokens));
    file.read(0, ids);
    std::vector<bool> answer;
    for (std::size_t i = 0; i < ids.size(); ++i)
      answer.push_back(ids[i] == 'a' || (i > 0 && ids[i] == 256 && ids[i - 1] == 'a'));
    return answer;
  }
};

TEST_F(AnswersTest, ARangeIsTheAnswerAndTheEndOfTextBehindIt) {
  const std::string file =
      write_file("x.jsonl",
                 "{\"prompt\": \"2+2=\", \"completion\": \"4\"}\n{\"prompt\": \"\", \"completion\": \"yes\"}\n"
                 "{\"prompt\": \"no answer\", \"completion\": \"\"}\n{\"prompt\": \"\", \"completion\": \"\"}\n"
                 "{\"prompt\": \"last: \", \"completion\": \"end\"}\n");
  tokenize(options({file}), *load_tokenizer("bytes"));
  const TokenFile out(path("out.h5"));
  // |2+2=4|yes|no answer|last: end
  EXPECT_EQ(out.document_starts(), (Bounds{0, 6, 10, 20}));
  EXPECT_EQ(out.answers(), (Bounds{5, 11, 27, 30}))
      << "4, |, y, e, s and | lie side by side; nothing is behind the last";
  EXPECT_TRUE(out.info().has_answers);
  out.verify();
}

TEST_F(AnswersTest, FilesWithoutAnswersSaySo) {
  const TokenFile plain(write_shard("plain.h5", {10, 20}));
  EXPECT_FALSE(plain.info().has_answers);
  EXPECT_TRUE(plain.answers().empty());
  LoaderOptions o;
  o.paths = {path("plain.h5")};
  o.seq_len = 4;
  o.batch_size = o.micro_batch_size = 1;
  o.answers = true;
  EXPECT_NE(error_of([&] { Loader loader(o); }).find("does not say which tokens are answers"), std::string::npos);
  EXPECT_NE(
      error_of([&] { tokenize(options({write_file("a.txt", "text")}), *load_tokenizer("bytes")); }).find("plain text"),
      std::string::npos);
  const std::string lacks = write_file("lacks.jsonl", "{\"prompt\": \"x\"}\n");
  EXPECT_NE(error_of([&] { tokenize(options({lacks}), *load_tokenizer("bytes")); }).find("--answer-field"),
            std::string::npos);
  TokenizeOptions same = options({records()});
  same.source.answer_field = same.source.field;
  EXPECT_EQ(error_of([&] { tokenize(same, *load_tokenizer("bytes")); }),
            "the field 'prompt' can't hold both the prompt (--field) and its answer (--answer-field)");
}

TEST_F(AnswersTest, SplitsWithoutAnyAreRefused) {
  std::string text;
  for (int i = 0; i < 20; ++i)
    text += fmt::format("{{\"prompt\": \"pppp\", \"completion\": \"{}\"}}\n", i < 18 ? "" : "a");
  TokenizeOptions t = options({write_file("late.jsonl", text)});
  t.output.val_fraction = 0.2;
  tokenize(t, *load_tokenizer("bytes"));
  LoaderOptions o{.paths = {path("out.h5")}, .seq_len = 4, .batch_size = 1, .micro_batch_size = 1, .answers = true};
  EXPECT_EQ(error_of([&] { Loader loader(o); }),
            "train.loss_mask: the train split of " + path("out.h5") + " holds no answer to predict");
  o.split = Split::val;
  EXPECT_NO_THROW(Loader loader(o));
  write_file("none.jsonl", "{\"prompt\": \"pppp\", \"completion\": \"\"}\n");
  tokenize(options({path("none.jsonl")}), *load_tokenizer("bytes"));
  const ValidationOptions v{
      .paths = {path("out.h5")}, .split = Split::all, .seq_len = 4, .batch_size = 1, .answers = true};
  EXPECT_EQ(error_of([&] { ValidationSet data(v); }),
            "train.loss_mask: the all split of " + path("out.h5") + " holds no answer to predict");
}

TEST_F(AnswersTest, CountsAndMasksAreThoseOfEveryToken) {
  tokenize(options({records()}), *load_tokenizer("bytes"));
  const TokenFile file(path("out.h5"));
  const std::vector<bool> answer = wanted(file);
  const AnswerRanges ranges(file.answers());
  const auto n = static_cast<std::int64_t>(answer.size());
  for (std::int64_t begin = 0; begin < n; begin += 13)
    for (const std::int64_t length : {0, 1, 5, 64}) {
      const std::int64_t end = std::min(n, begin + length);
      std::vector<std::int32_t> targets(static_cast<std::size_t>(end - begin), 7), want;
      for (std::int64_t i = begin; i < end; ++i) want.push_back(answer[static_cast<std::size_t>(i)] ? 7 : -1);
      EXPECT_EQ(ranges.count(begin, end), std::count(want.begin(), want.end(), 7)) << begin << " " << end;
      ranges.mask(begin, targets);
      EXPECT_EQ(targets, want) << begin << " " << end;
    }
  EXPECT_EQ(AnswerRanges({}).count(0, 100), 0);
}

TEST_F(AnswersTest, BatchesCountAnswersAloneAndKnowTheWholeSteps) {
  TokenizeOptions t = options({records()});
  t.output.val_fraction = 0.2;
  tokenize(t, *load_tokenizer("bytes"));
  const TokenFile file(path("out.h5"));
  const std::vector<bool> answer = wanted(file);
  LoaderOptions o;
  o.paths = {path("out.h5")};
  o.seq_len = 16;
  o.batch_size = 8;
  o.seed = 5;
  std::vector<std::int64_t> expected;  // a step
  for (const auto& [ranks, micro] : std::vector<std::pair<int, int>>{{1, 8}, {1, 2}, {4, 1}}) {
    o.micro_batch_size = micro;
    o.world_size = ranks;
    std::vector<std::int64_t> step_targets, summed(3);
    for (o.rank = 0; o.rank < ranks; ++o.rank) {
      o.answers = true;
      Loader masked(o);
      o.answers = false;
      Loader whole(o);
      for (int s = 0; s < 3; ++s)
        for (int m = 0; m < masked.micro_steps(); ++m) {
          const Batch &a = masked.next(), &b = whole.next();
          EXPECT_EQ(a.tokens, b.tokens);
          EXPECT_EQ(b.step_targets, 8 * 16);
          std::int64_t counted = 0;
          for (std::size_t i = 0; i < a.targets.size(); ++i) {
            const bool is_answer = b.targets[i] == 'a' || (b.targets[i] == 256 && b.tokens[i] == 'a');
            EXPECT_EQ(a.targets[i], is_answer ? b.targets[i] : -1);
            counted += is_answer ? 1 : 0;
          }
          EXPECT_EQ(a.num_targets, counted);
          summed[static_cast<std::size_t>(s)] += counted;
          if (o.rank == 0 && m == 0) step_targets.push_back(a.step_targets);
          EXPECT_EQ(a.step_targets, step_targets[static_cast<std::size_t>(s)]);
        }
    }
    EXPECT_EQ(summed, step_targets) << ranks << " ranks";
    if (expected.empty()) expected = step_targets;
    EXPECT_EQ(step_targets, expected);
  }
  ValidationOptions v{.paths = {path("out.h5")}, .split = Split::val, .seq_len = 16, .batch_size = 3, .answers = true};
  ValidationSet data(v);
  std::int64_t targets = 0, in_split = 0;
  for (std::int64_t i = 0; i < data.num_batches(); ++i) targets += data.batch(i).num_targets;
  for (std::int64_t i = file.info().val_start + 1; i < file.info().total_tokens; ++i)
    in_split += answer[static_cast<std::size_t>(i)] ? 1 : 0;
  EXPECT_EQ(targets, in_split);
  EXPECT_EQ(data.total_targets(), in_split);
}

TEST_F(AnswersTest, ShardsKeepTheirsAndGoOnAlike) {
  TokenizeOptions o = options({records()});
  o.output.path = path("shard.h5");
  o.shard_tokens = 500;
  tokenize(o, *load_tokenizer("bytes"));
  std::int64_t answers = 0;
  const ShardSet shards({path("shard_*.h5")});
  ASSERT_GT(shards.files().size(), 2u);
  for (const auto& file : shards.files()) {
    const std::vector<bool> answer = wanted(*file);
    EXPECT_EQ(AnswerRanges(file->answers()).count(0, file->info().total_tokens),
              std::count(answer.begin(), answer.end(), true));
    answers += std::count(answer.begin(), answer.end(), true);
  }
  EXPECT_GT(answers, 0);
  o.resume = true;
  o.output.force = false;
  o.source.answer_field.clear();
  std::filesystem::remove(shards.files().back()->info().path);
  EXPECT_NE(error_of([&] { tokenize(o, *load_tokenizer("bytes")); }).find("made with --answer-field"),
            std::string::npos);
}

TEST_F(AnswersTest, NeedlesHaveOneEach) {
  write_needle_data({.path = path("n.h5"), .seq_len = 32, .lengths = {16}, .windows = 2});
  EXPECT_EQ(TokenFile(path("n.h5")).answers(), (Bounds{15, 16, 31, 32, 47, 48, 63, 64}));
}

TEST_F(AnswersTest, DamageIsSaid) {
  tokenize(options({records()}), *load_tokenizer("bytes"));
  const TokenFile file(path("out.h5"));
  std::string bytes = read_file(path("out.h5"));
  const Bounds bounds = file.answers();
  const std::string raw(reinterpret_cast<const char*>(bounds.data()), bounds.size() * sizeof(std::int64_t));
  const std::size_t at = bytes.find(raw);
  ASSERT_NE(at, std::string::npos);
  bytes[at + 8] = static_cast<char>(bytes[at + 8] ^ 1);
  write_file("bad.h5", bytes);
  EXPECT_NE(error_of([&] { TokenFile(path("bad.h5")).verify(); }).find("ranges of answers"), std::string::npos);
  // Ranges without their checksum are no file without answers.
  std::filesystem::copy_file(path("out.h5"), path("bare.h5"));
  {
    hdf5::Lock lock;
    const hdf5::Handle bare(H5Fopen(path("bare.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
    ASSERT_GE(H5Adelete(bare.get(), "answer_ranges_checksum"), 0);
  }
  EXPECT_NE(error_of([&] { TokenFile(path("bare.h5")); }).find("answer_ranges_checksum is missing or damaged"),
            std::string::npos);
}

}  // namespace
}  // namespace sfa
