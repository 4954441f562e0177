// A run that is killed, or meets a full disk, and is resumed ends with the same bits as one that was left alone;
// written in the background or not.
#include <sched.h>
#include <sys/mount.h>

#include <csignal>

#include "checkpoint/run_fixture.h"

namespace sfa::test {
namespace {

using Resume = RunFixture;

TEST_F(Resume, KilledTwentyTimesItEndsBitForBitTheSame) {
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(exit_code(train("calm", false)), 0) << errors();
  const std::chrono::duration<double, std::micro> whole = std::chrono::steady_clock::now() - begin;
  const std::string expected = final_bytes("calm");
  std::mt19937 random(5);
  int killed = 0, round = 0;
  // A life is as long as a run at most; a run that is through is started anew in another folder.
  for (int runs = 0; killed < 20 && runs < 100; ++runs) {
    const std::string output = fmt::format("killed_{}", runs);
    for (bool finished = false; !finished; ++round) {
      const pid_t child = start(train(output, round % 2 == 0));
      std::this_thread::sleep_for(whole * (0.05 + 0.7 * static_cast<double>(random() % 1000) / 1000.0));
      if (killed < 20) ::kill(child, SIGKILL);
      const int status = wait_for(child);
      finished = WIFEXITED(status);
      ASSERT_TRUE(!finished || WEXITSTATUS(status) == 0) << errors();
      killed += finished ? 0 : 1;
      for (const fs::path& checkpoint : list_checkpoints(folder.path() / output)) CheckpointReader(checkpoint).verify();
    }
    EXPECT_TRUE(final_bytes(output) == expected) << "run " << runs << " ended differently";
  }
  EXPECT_EQ(killed, 20);
}

TEST_F(Resume, StoppedBySignalItSavesAndExitsWell) {
  const std::vector<std::string> gpt2,
      qwen3{"model.arch=qwen3", "model.num_key_value_heads=1", "model.head_dim=24", "model.tie_word_embeddings=false",
            "model.attention.rope_projection=shared"},
      gated{"model.attention.gate=feature", "model.attention.balance=0.01"};
  for (const auto& [model, more] : {std::pair{"gpt2", gpt2}, {"qwen3", qwen3}, {"gated", gated}}) {
    SCOPED_TRACE(model);
    const std::string name = model, stopped = "stopped_" + name, calm = "calm_" + name;
    const pid_t child = start(train(stopped, true, more));
    int status = 0;
    bool ended = false;
    while (!ended && list_checkpoints(folder.path() / stopped).empty()) {
      ended = ::waitpid(child, &status, WNOHANG) != 0;
      ::usleep(500);
    }
    if (!ended) {
      ::kill(child, SIGTERM);
      status = wait_for(child);
    }
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0) << errors();
    EXPECT_NE(errors().find("stopped by signal 15"), std::string::npos) << errors();
    EXPECT_TRUE(leftovers(folder.path() / stopped).empty());
    ASSERT_EQ(exit_code(train(stopped, true, more)), 0) << errors();
    ASSERT_EQ(exit_code(train(calm, true, more)), 0) << errors();
    EXPECT_TRUE(final_bytes(stopped) == final_bytes(calm));
  }
}

// The disk fills up in the middle of a run: one sentence, the last good checkpoint stays, and with more room it ends as
// it should.
TEST_F(Resume, FullDisk) {
  ASSERT_EQ(exit_code(train("calm", true)), 0) << errors();
  const auto bytes = fs::file_size(find_checkpoint(folder.path() / "calm") / "rank_00000.h5");
  for (const bool background : {true, false}) {
    const std::string output = background ? "full_background" : "full";
    const int status = wait_for(start_child([&] {
      const fs::path disk = folder.path() / output;
      fs::create_directory(disk);
      const auto room = [&](double checkpoints) {
        return fmt::format("size={}k", static_cast<int>(checkpoints * static_cast<double>(bytes) / 1024) + 100);
      };
      if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
          ::mount("tmpfs", disk.c_str(), "tmpfs", 0, room(2.5).c_str()) != 0)
        std::exit(77);
      // Two are kept and a third is written beside them: there is no room for it.
      const std::string run = output + "/run";
      require(exit_code(train(run, background)) == 1, "the full disk went unnoticed: {}", errors());
      const std::string sentence = errors();
      require(sentence.find("No space left on device; free some space") != std::string::npos, "{}", sentence);
      require(leftovers(disk / "run").empty(), "the broken checkpoint stays and fills the disk");
      const auto all = list_checkpoints(disk / "run");
      require(all.size() == 2, "{} checkpoints are left", all.size());
      for (const fs::path& checkpoint : all) CheckpointReader(checkpoint).verify();
      require(::mount(nullptr, disk.c_str(), nullptr, MS_REMOUNT, room(4).c_str()) == 0, "cannot remount");
      require(exit_code(train(run, background)) == 0, "{}", errors());
      require(final_bytes(run) == final_bytes("calm"), "the run ended differently");
    }));
    ASSERT_TRUE(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "mounting a small tmpfs needs root";
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
}

}  // namespace
}  // namespace sfa::test
