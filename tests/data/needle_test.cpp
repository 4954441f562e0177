// The synthetic needle task: what a sequence looks like, and the files of them.
#include "data/needle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/error.h"
#include "data/data_test.h"

namespace sfa {
namespace {

constexpr std::uint32_t kEnd = 256;

// Where the needle lies; checks all that every sequence has.
std::int64_t check(const std::vector<std::uint32_t>& ids) {
  const auto n = static_cast<std::int64_t>(ids.size());
  EXPECT_EQ(ids.front(), kEnd);
  EXPECT_EQ(ids[1], static_cast<std::uint32_t>('#'));
  EXPECT_EQ(ids[static_cast<std::size_t>(n - 2)], static_cast<std::uint32_t>('?'));
  EXPECT_EQ(ids[static_cast<std::size_t>(n - 3)], static_cast<std::uint32_t>('#'));
  std::int64_t place = -1;
  for (std::int64_t i = 1; i < n - 2; ++i)
    if (ids[static_cast<std::size_t>(i)] != '#') {
      EXPECT_EQ(place, -1) << "one needle";
      place = i;
    }
  EXPECT_EQ(ids.back(), ids[static_cast<std::size_t>(place)]);
  return place;
}

TEST(Needle, DepthSaysWhere) {
  for (const std::int64_t n : {6, 7, 64, 1000}) {
    EXPECT_EQ(check(needle_sequence(n, 0, 1, 5)), 2);
    EXPECT_EQ(check(needle_sequence(n, 1, 1, 5)), n - 4);
  }
  EXPECT_EQ(check(needle_sequence(105, 0.5, 1, 5)), 2 + 50);
  EXPECT_THROW(needle_sequence(5, 0, 1, 1), Error);
}

TEST(Needle, PlacesAndValuesAreSpreadEvenly) {
  std::map<std::int64_t, int> places;
  std::map<std::uint32_t, int> values;
  for (std::uint64_t i = 0; i < 6200; ++i) {
    const auto ids = needle_sequence(15, -1, 3, i);
    ++places[check(ids)];
    ++values[ids.back()];
  }
  EXPECT_EQ(places.size(), 10u);
  for (const auto& [place, count] : places) EXPECT_NEAR(count, 620, 130) << place;
  EXPECT_EQ(values.size(), static_cast<std::size_t>(kNeedleValues));
  for (const auto& [value, count] : values) EXPECT_NEAR(count, 100, 45) << value;
  EXPECT_EQ(needle_sequence(15, -1, 3, 7), needle_sequence(15, -1, 3, 7));
  EXPECT_NE(needle_sequence(15, -1, 3, 7), needle_sequence(15, -1, 4, 7));
}

class NeedleData : public DataTest {};

TEST_F(NeedleData, WindowsAreWholeSequences) {
  const std::string file_name = path("needle.h5");
  const TokenFileInfo info =
      write_needle_data({.path = file_name, .seq_len = 64, .lengths = {8, 16, 64}, .windows = 50, .val_fraction = 0.2});
  EXPECT_EQ(info.total_tokens, 50 * 64);
  EXPECT_EQ(info.vocab_size, 257);
  EXPECT_EQ(info.val_start % 64, 0) << "windows are not cut";
  const TokenFile file(file_name);
  std::vector<std::int32_t> ids(50 * 64);
  file.read(0, ids);
  std::vector<std::int64_t> starts = file.document_starts();
  starts.push_back(info.total_tokens);
  std::set<std::int64_t> lengths;
  for (std::size_t d = 0; d + 1 < starts.size(); ++d) {
    lengths.insert(starts[d + 1] - starts[d]);
    check({ids.begin() + starts[d], ids.begin() + starts[d + 1]});
  }
  EXPECT_EQ(lengths, (std::set<std::int64_t>{8, 16, 64}));
  for (std::int64_t w = 0; w < 50; ++w)
    EXPECT_EQ(ids[static_cast<std::size_t>(w * 64)], static_cast<std::int32_t>(kEnd));
  EXPECT_THROW(write_needle_data({.path = path("b.h5"), .seq_len = 64, .lengths = {24}}), Error);
  EXPECT_THROW(write_needle_data({.path = path("b.h5"), .seq_len = 64, .lengths = {}}), Error);
}

}  // namespace
}  // namespace sfa
