// Which tokens, targets and first keys a rank that shares sequences with others is given.
#include "data/sequence_part.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "data/loader.h"

namespace sfa::test {
namespace {

// Row b's token t is 100 b + t; documents of five tokens; the last three targets of row 1 are not to be predicted.
Batch whole_batch() {
  Batch b;
  b.B = 2;
  b.T = 24;
  b.first_sample = 6;
  b.target_bytes = 7;
  for (int row = 0; row < b.B; ++row)
    for (int t = 0; t < b.T; ++t) {
      b.tokens.push_back(100 * row + t);
      b.targets.push_back(row == 1 && t >= 21 ? -1 : 100 * row + t + 1);
      b.first_key.push_back(t / 5 * 5);
    }
  return b;
}

TEST(SequencePart, ChunksOfBothEndsAndFirstKeysThatCountFromEveryChunk) {
  const Batch whole = whole_batch();
  constexpr int kParts = 3, kChunk = 4;
  std::vector<int> seen(whole.tokens.size());
  std::int64_t targets = 0;
  for (int part = 0; part < kParts; ++part) {
    Batch mine;
    take_part(whole, {part, kParts}, mine);
    ASSERT_EQ(mine.B, 4);
    ASSERT_EQ(mine.T, kChunk);
    EXPECT_EQ(mine.first_sample, 6);
    EXPECT_EQ(mine.target_bytes, 7);
    targets += mine.num_targets;
    ASSERT_EQ(mine.first_key.size(), 3u * kParts * mine.tokens.size());
    for (std::size_t i = 0; i < mine.tokens.size(); ++i) {
      const int row = static_cast<int>(i) / kChunk, chunk = row < 2 ? part : 2 * kParts - 1 - part,
                place = chunk * kChunk + static_cast<int>(i) % kChunk, there = row % 2 * whole.T + place;
      EXPECT_EQ(mine.tokens[i], whole.tokens[static_cast<std::size_t>(there)]);
      EXPECT_EQ(mine.targets[i], whole.targets[static_cast<std::size_t>(there)]);
      ++seen[static_cast<std::size_t>(there)];
      // The keys of chunk s that are not before the document are those from first_key on.
      for (int s = 0; s < 2 * kParts; ++s) {
        const std::int32_t first = mine.first_key[static_cast<std::size_t>(s) * mine.tokens.size() + i];
        for (int key = 0; key < kChunk; ++key)
          EXPECT_EQ(key >= first, s * kChunk + key >= place / 5 * 5) << "chunk " << s << " key " << key;
      }
      for (int r = 0; r < kParts; ++r) {
        int before = 0;
        for (const int chunk_of_r : {r, 2 * kParts - 1 - r})
          for (int key = 0; key < kChunk; ++key) before += chunk_of_r * kChunk + key < place / 5 * 5 ? 1 : 0;
        EXPECT_EQ(mine.first_key[static_cast<std::size_t>(2 * kParts + r) * mine.tokens.size() + i], before);
      }
    }
  }
  EXPECT_EQ(targets, 2 * whole.T - 3);
  for (const int times : seen) EXPECT_EQ(times, 1);
}

TEST(SequencePart, UnevenChunksAreRefused) {
  Batch whole = whole_batch(), mine;
  EXPECT_THROW(take_part(whole, {0, 5}, mine), Error);
  EXPECT_NO_THROW(require_parts(24, 4));
}

}  // namespace
}  // namespace sfa::test
