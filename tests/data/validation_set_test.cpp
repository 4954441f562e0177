#include <algorithm>

#include "data/data_test.h"
#include "data/loader.h"

namespace sfa {
namespace {

class ValidationTest : public DataTest {
 protected:
  void SetUp() override {
    write_shard("s0.h5", {500, 37, 300}, 0.1);
    write_shard("s1.h5", {1, 1, 701}, 0.2);
  }
  [[nodiscard]] ValidationOptions options() const {
    ValidationOptions o;
    o.paths = {path("s*.h5")};
    o.seq_len = 16;
    o.batch_size = 3;
    return o;
  }
};

// Every (input, target) pair of the validation tails, in order, exactly once; nothing else.
TEST_F(ValidationTest, CoversEveryTransitionOnceWhateverTheBatchAndTheWorld) {
  std::vector<std::pair<int, int>> expected;
  const ShardSet shards({path("s*.h5")});
  for (const auto& file : shards.files()) {
    const auto [begin, end] = file->range(Split::val);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(end - begin));
    file->read(begin, ids);
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) expected.emplace_back(ids[i], ids[i + 1]);
  }
  for (const int world : {1, 2, 4}) {
    std::vector<ValidationSet> ranks;
    ValidationOptions o = options();
    for (o.rank = 0, o.world_size = world; o.rank < world; ++o.rank) ranks.emplace_back(o);
    std::vector<std::pair<int, int>> found;
    std::int64_t targets = 0;
    for (std::int64_t i = 0; i < ranks[0].num_batches(); ++i)
      for (ValidationSet& rank : ranks) {
        EXPECT_EQ(rank.num_batches(), ranks[0].num_batches());
        const Batch& batch = rank.batch(i);
        targets += batch.num_targets;
        EXPECT_EQ(batch.target_bytes + std::count(batch.targets.begin(), batch.targets.end(), 256), batch.num_targets);
        for (std::size_t t = 0; t < batch.targets.size(); ++t)
          if (batch.targets[t] != -1) found.emplace_back(batch.tokens[t], batch.targets[t]);
      }
    EXPECT_EQ(found, expected) << world;
    EXPECT_EQ(targets, static_cast<std::int64_t>(expected.size()));
    EXPECT_EQ(ranks[0].total_targets(), targets);
  }
}

TEST_F(ValidationTest, PaddingIsInsideTheVocabularyAndMasked) {
  ValidationOptions o = options();
  o.paths = {path("s0.h5")};
  o.document_mask = true;
  ValidationSet set(o);
  const Batch& last = set.batch(set.num_batches() - 1);
  EXPECT_LT(last.num_targets, 3 * 16);
  for (std::size_t i = 0; i < last.tokens.size(); ++i) {
    EXPECT_TRUE(last.tokens[i] >= 0 && last.tokens[i] < 257);
    EXPECT_GE(last.first_key[i], 0);
    EXPECT_LE(last.first_key[i], static_cast<std::int32_t>(i % 16));
  }
}

TEST_F(ValidationTest, FilesOfTheirOwnAreTakenWholeUnlessTheyHaveATail) {
  write_shard("own.h5", {100});
  EXPECT_EQ(validation_split_of_own_files(ShardSet({path("own.h5")})), Split::all);
  EXPECT_EQ(validation_split_of_own_files(ShardSet({path("s0.h5")})), Split::val);
  ValidationOptions o = options();
  o.paths = {path("own.h5")};
  expect_parts(error_of([&] { ValidationSet set(o); }), {path("own.h5"), "no validation part"});
  o.split = Split::all;
  EXPECT_EQ(ValidationSet(o).total_targets(), 99);
}

TEST_F(ValidationTest, AFileWithoutATailAmongOthersIsPassedOver) {
  write_shard("s2.h5", {5}, 0.01);
  ValidationOptions o = options();
  const std::int64_t targets = ValidationSet(o).total_targets();
  o.paths = {path("s0.h5"), path("s1.h5")};
  EXPECT_EQ(targets, ValidationSet(o).total_targets());
}

TEST_F(ValidationTest, OneTokenIsTooFew) {
  write_shard("one.h5", {1});
  ValidationOptions o = options();
  o.paths = {path("one.h5")};
  o.split = Split::all;
  expect_parts(error_of([&] { ValidationSet set(o); }), {path("one.h5"), "too few"});
}

}  // namespace
}  // namespace sfa
