#include "data/loader.h"

#include <algorithm>
#include <map>
#include <set>
#include <thread>

#include "data/data_test.h"

namespace sfa {
namespace {

class LoaderTest : public DataTest {
 protected:
  // Three shards of different lengths, one of them too short for a window of 16.
  void SetUp() override {
    write_shard("s0.h5", {500, 37, 300}, 0.1);
    write_shard("s1.h5", {10});
    write_shard("s2.h5", {1, 1, 700}, 0.2);
  }
  [[nodiscard]] LoaderOptions options() const {
    LoaderOptions o;
    o.paths = {path("s*.h5")};
    o.seq_len = 16;
    o.batch_size = 8;
    o.micro_batch_size = 2;
    o.seed = 11;
    return o;
  }
  using Row = std::vector<std::int32_t>;
  // Row i of a batch: inputs and targets one after the other.
  static Row row(const Batch& batch, int i) {
    const auto T = static_cast<std::size_t>(batch.T), at = static_cast<std::size_t>(i) * T;
    Row r(batch.tokens.begin() + static_cast<std::ptrdiff_t>(at),
          batch.tokens.begin() + static_cast<std::ptrdiff_t>(at + T));
    r.insert(r.end(), batch.targets.begin() + static_cast<std::ptrdiff_t>(at),
             batch.targets.begin() + static_cast<std::ptrdiff_t>(at + T));
    return r;
  }
  // Rows by global sample index over `steps` optimizer steps of all ranks.
  static std::map<std::int64_t, Row> rows_of(LoaderOptions o, int world, int steps) {
    std::map<std::int64_t, Row> rows;
    for (int rank = 0; rank < world; ++rank) {
      o.rank = rank;
      o.world_size = world;
      Loader loader(o);
      for (int m = 0; m < steps * loader.micro_steps(); ++m) {
        const Batch& batch = loader.next();
        for (int i = 0; i < batch.B; ++i)
          EXPECT_TRUE(rows.emplace(batch.first_sample + i, row(batch, i)).second) << "sample twice";
      }
    }
    return rows;
  }
};

TEST_F(LoaderTest, TargetsAreTheNextTokensAndWindowsComeFromTheFiles) {
  const ShardSet shards({path("s*.h5")});
  std::vector<Row> files;
  for (const auto& file : shards.files()) {
    files.emplace_back(static_cast<std::size_t>(file->info().val_start));
    file->read(0, files.back());
  }
  Loader loader(options());
  for (int m = 0; m < 200; ++m) {
    const Batch& batch = loader.next();
    ASSERT_EQ(batch.B, 2);
    ASSERT_EQ(batch.T, 16);
    EXPECT_EQ(batch.num_targets, 32);
    EXPECT_TRUE(batch.first_key.empty());
    for (int i = 0; i < batch.B; ++i) {
      const Row r = row(batch, i);
      Row window(r.begin(), r.begin() + 16);
      window.push_back(r.back());
      EXPECT_TRUE(std::equal(r.begin() + 1, r.begin() + 16, r.begin() + 16));
      EXPECT_TRUE(std::any_of(files.begin(), files.end(), [&](const Row& file) {
        return std::search(file.begin(), file.end(), window.begin(), window.end()) != file.end();
      })) << "the window is no stretch of the training part of any file";
    }
  }
}

TEST_F(LoaderTest, AnEpochVisitsEveryWindowOnceAndEpochsDiffer) {
  const ShardSet shards({path("s*.h5")});
  const SampleOrder order(shards, Split::train, 16, 11, true);
  const std::int64_t n = order.samples_per_epoch();
  EXPECT_EQ(n, (shards.files()[0]->info().val_start - 16) / 16 + (shards.files()[2]->info().val_start - 16) / 16);
  std::vector<std::int64_t> offsets;
  for (std::int64_t epoch = 0; epoch < 20; ++epoch) {
    std::set<std::pair<std::size_t, std::int64_t>> seen;
    std::set<std::int64_t> offset_of_file0;
    for (std::int64_t i = 0; i < n; ++i) {
      const auto window = order(epoch * n + i);
      EXPECT_TRUE(seen.emplace(window.file, window.begin).second);
      EXPECT_GE(window.begin, 0);
      EXPECT_LE(window.begin + 17, shards.files()[window.file]->info().val_start);
      if (window.file == 0) offset_of_file0.insert(window.begin % 16);
    }
    EXPECT_EQ(offset_of_file0.size(), 1u) << "windows of an epoch must not overlap";
    offsets.push_back(*offset_of_file0.begin());
  }
  EXPECT_GT(std::set<std::int64_t>(offsets.begin(), offsets.end()).size(), 5u);
}

TEST_F(LoaderTest, WithoutShuffleTheTextComesInOrder) {
  const ShardSet shards({path("s0.h5")});
  const SampleOrder order(shards, Split::train, 16, 11, false);
  EXPECT_EQ(order.samples_per_epoch(), (shards.files()[0]->info().val_start - 1) / 16);
  for (std::int64_t i = 0; i < order.samples_per_epoch(); ++i) EXPECT_EQ(order(i).begin, 16 * i);
}

TEST_F(LoaderTest, AnySizeOfWorldAndMicroBatchSeesTheSameSamples) {
  const auto expected = rows_of(options(), 1, 30);
  ASSERT_EQ(expected.size(), 240u);
  EXPECT_EQ(expected.begin()->first, 0);
  EXPECT_EQ(rows_of(options(), 2, 30), expected);
  EXPECT_EQ(rows_of(options(), 4, 30), expected);
  LoaderOptions other = options();
  other.micro_batch_size = 8;
  EXPECT_EQ(rows_of(other, 1, 30), expected);
  other.micro_batch_size = 1;
  EXPECT_EQ(rows_of(other, 4, 30), expected);
}

TEST_F(LoaderTest, EveryStepOfEveryWorldTakesItsOwnSamples) {
  LoaderOptions o = options();
  for (const int world : {1, 2, 4}) {
    std::set<std::int64_t> step3;
    for (o.rank = 0, o.world_size = world; o.rank < world; ++o.rank) {
      Loader loader(o);
      for (int m = 0; m < 3 * loader.micro_steps(); ++m) (void)loader.next();
      for (int m = 0; m < loader.micro_steps(); ++m) {
        const Batch& batch = loader.next();
        for (int i = 0; i < batch.B; ++i) step3.insert(batch.first_sample + i);
      }
    }
    EXPECT_EQ(step3.size(), 8u);
    EXPECT_EQ(*step3.begin(), 24);
    EXPECT_EQ(*step3.rbegin(), 31);
  }
}

TEST_F(LoaderTest, ResumedAnywhereTheStreamGoesOn) {
  const auto expected = rows_of(options(), 1, 60);  // several epochs
  for (const std::int64_t start : {1, 8, 77, 100, 101, 399}) {
    LoaderOptions o = options();
    o.start_sample = start;
    for (const auto& [sample, r] : rows_of(o, 2, 8)) {
      const auto found = expected.find(sample);
      ASSERT_NE(found, expected.end());
      EXPECT_EQ(r, found->second) << sample;
    }
  }
}

TEST_F(LoaderTest, NextSampleIsWhereToResume) {
  Loader loader(options());
  EXPECT_EQ(loader.next_sample(), 0);
  for (int m = 0; m < 5 * loader.micro_steps(); ++m) (void)loader.next();
  EXPECT_EQ(loader.next_sample(), 40);
  LoaderOptions o = options();
  o.start_sample = loader.next_sample();
  Loader resumed(o);
  const Row next = row(resumed.next(), 0);
  EXPECT_EQ(next, row(loader.next(), 0));
}

TEST_F(LoaderTest, SeedsGiveOtherOrders) {
  LoaderOptions o = options();
  o.seed = 12;
  EXPECT_NE(rows_of(o, 1, 10), rows_of(options(), 1, 10));
}

TEST_F(LoaderTest, FirstKeyIsTheFirstTokenOfTheDocumentWithinTheRow) {
  LoaderOptions o = options();
  o.paths = {path("s0.h5"), path("s2.h5")};
  o.document_mask = true;
  Loader loader(o);
  int boundaries = 0;
  for (int m = 0; m < 100; ++m) {
    const Batch& batch = loader.next();
    ASSERT_EQ(batch.first_key.size(), batch.tokens.size());
    for (int i = 0; i < batch.B; ++i) {
      std::int32_t expected = 0;  // only end of text opens a document, and nothing else has its id
      for (int t = 0; t < batch.T; ++t) {
        const auto at = static_cast<std::size_t>(i * batch.T + t);
        if (batch.tokens[at] == 256) expected = t;
        EXPECT_EQ(batch.first_key[at], expected);
        boundaries += batch.tokens[at] == 256 && t > 0;
      }
    }
  }
  EXPECT_GT(boundaries, 0);
}

TEST_F(LoaderTest, DamageFoundByThePrefetchThreadSurfacesInNext) {
  std::string bytes = read_file(path("s2.h5"));
  const std::size_t at = bytes.find(std::string("\x0a\0\x0b\0\x0c\0", 6));  // tokens 10, 11, 12
  ASSERT_NE(at, std::string::npos);
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  write_file("s2.h5", bytes);
  Loader loader(options());
  const std::string message = error_of([&] {
    for (int m = 0; m < 1000; ++m) (void)loader.next();
  });
  expect_parts(message, {path("s2.h5"), "block 0", "checksum"});
  EXPECT_EQ(error_of([&] { (void)loader.next(); }), message) << "and stays";
}

TEST_F(LoaderTest, WaitingIsMeasured) {
  Loader loader(options());
  (void)loader.next();
  EXPECT_GE(loader.take_wait_ms(), 0.0);
  EXPECT_EQ(loader.take_wait_ms(), 0.0);
}

TEST_F(LoaderTest, BadRequestsAreOneSentence) {
  LoaderOptions o = options();
  o.batch_size = 7;
  expect_parts(error_of([&] { Loader loader(o); }), {"batch_size 7", "micro_batch_size 2", "1 rank"});
  o = options();
  o.seq_len = 4000;
  expect_parts(error_of([&] { Loader loader(o); }), {"4001", "train", "data.seq_len"});
  o = options();
  o.paths = {path("none*.h5")};
  expect_parts(error_of([&] { Loader loader(o); }), {"none*.h5", "no data file matches"});
  o.paths = {path("none.h5")};
  expect_parts(error_of([&] { Loader loader(o); }), {"none.h5", "does not exist"});
}

TEST_F(LoaderTest, ShardsOfDifferentTokenizersAreRefused) {
  class Other final : public Tokenizer {
   public:
    Other() { set_vocabulary("other", std::vector<std::string>(300, "x"), 0, "other"); }
    void encode(std::string_view, std::vector<std::uint32_t>&) const override {}
    [[nodiscard]] std::size_t safe_prefix(std::string_view text) const override { return text.size(); }
  } other;
  TokenWriter writer({path("s9.h5"), 0.0, false}, other);
  writer.begin_document();
  writer.finish({}, "");
  expect_parts(error_of([&] { ShardSet shards({path("s*.h5")}); }),
               {path("s0.h5"), path("s9.h5"), "bytes", "other", "tokenizer"});
}

TEST_F(LoaderTest, AWindowThatJustFitsIsTheOnlyOne) {
  write_shard("w.h5", {17});
  LoaderOptions o = options();
  o.paths = {path("w.h5")};
  Loader loader(o);
  EXPECT_EQ(loader.samples_per_epoch(), 1);
  EXPECT_EQ(loader.next().tokens[0], 256);
  write_shard("w.h5", {16});
  error_of([&] { Loader too_short(o); });
}

}  // namespace
}  // namespace sfa
