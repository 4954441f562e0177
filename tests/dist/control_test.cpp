// The control channel among threads of one process, each a rank.
#include "dist/control.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "dist/communicator.h"

namespace sfa::test {
namespace {

// Runs `work` as every rank of `size`, which meet at a file.
void as_ranks(int size, const std::function<void(ControlChannel&)>& work) {
  const std::string file =
      (std::filesystem::temp_directory_path() / ("sfa_meet_" + std::to_string(::getpid()))).string();
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back([=] {
      Launch launch;
      launch.rank = r;
      launch.size = size;
      launch.launcher = "a test";
      launch.file = file;
      ControlChannel control({launch, 20, {}}, {});
      work(control);
    });
  for (std::thread& t : threads) t.join();
  EXPECT_FALSE(std::filesystem::exists(file)) << "the meeting place is left behind";
}

TEST(Control, TextsOfAllRanksInOrder) {
  as_ranks(4, [](ControlChannel& control) {
    for (int round = 0; round < 50; ++round) {
      // Lanes do not wait for each other.
      control.begin_gather(ControlChannel::kVote, std::string(static_cast<std::size_t>(round), 'v'));
      const std::string mine = std::to_string(control.rank()) + ":" + std::to_string(round);
      const auto all = control.gather(ControlChannel::kMain, mine);
      ASSERT_EQ(all.size(), 4u);
      for (int r = 0; r < 4; ++r)
        EXPECT_EQ(all[static_cast<std::size_t>(r)], std::to_string(r) + ":" + std::to_string(round));
      for (const std::string& text : control.end_gather(ControlChannel::kVote))
        EXPECT_EQ(text.size(), static_cast<std::size_t>(round));
    }
    EXPECT_EQ(control.broadcast(ControlChannel::kMain, "from " + std::to_string(control.rank())), "from 0");
    EXPECT_EQ(control.broadcast(ControlChannel::kMain, std::string(3'000'000, 'x')).size(), 3'000'000u);
  });
}

TEST(Control, AFailureOfOneIsThrownByAll) {
  as_ranks(3, [](ControlChannel& control) {
    int thrown = 0;
    try {
      control.agree([&] { require(control.rank() != 1, "the disk is full"); });
    } catch (const AgreedError& e) {
      ++thrown;
      const std::string text = e.what();
      if (control.rank() == 0) {
        EXPECT_NE(text.find("rank 1 ("), std::string::npos) << text;
        EXPECT_NE(text.find("the disk is full"), std::string::npos) << text;
      } else {
        EXPECT_EQ(text, "");
      }
    }
    EXPECT_EQ(thrown, 1);
    control.agree([] {});
  });
}

TEST(Control, RangesCoverWhatIsSplit) {
  for (const std::int64_t n : {0, 1, 63, 64, 65, 1000, 4096})
    for (const int parts : {1, 2, 3, 8}) {
      std::int64_t at = 0;
      for (const FlatRange& r : split_evenly(n, parts, 64)) {
        EXPECT_EQ(r.begin, at);
        EXPECT_TRUE(r.begin % 64 == 0 || r.begin == n);
        at = r.end();
      }
      EXPECT_EQ(at, n);
    }
}

}  // namespace
}  // namespace sfa::test
