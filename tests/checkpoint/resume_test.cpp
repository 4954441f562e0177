// A run that is killed, or meets a full disk, and is resumed ends with the same bits as one that was left alone;
// written in the background or not.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>

#include <csignal>

#include "checkpoint/helpers.h"

namespace sfa::test {
namespace {

constexpr int kSteps = 24;

struct Resume : ::testing::Test {
  TempFolder folder;

  void SetUp() override {
    std::string text;
    for (int i = 0; text.size() < 20'000; ++i) text += fmt::format("{} and {} make {}.\n", i, i * i, i + i * i);
    write_file(folder.path() / "text.txt", text);
    write_file(folder.path() / "run.yaml",
               "model:\n  arch: gpt2\n  num_hidden_layers: 1\n  num_attention_heads: 2\n  hidden_size: 32\n"
               "  max_position_embeddings: 32\n  attention: {type: sfa, k: 4}\n"
               "data: {train: data.h5, seq_len: 32, batch_size: 4, micro_batch_size: 2}\n"
               "checkpoint: {every: 1, keep_last: 2}\n"
               "output_dir: none\ndevice: cpu\nseed: 3\n" +
                   fmt::format("train: {{max_steps: {}, lr: 1.0e-2, warmup_steps: 2, eval_every: 0, log_every: 5}}\n",
                               kSteps));
    ASSERT_EQ(exit_code({"data", "tokenize", "--tokenizer", "bytes", "--output", "data.h5", "text.txt"}), 0)
        << errors();
  }

  // Starts `sfa` in the folder, alone in its process, so that a kill meets it and nothing else.
  [[nodiscard]] pid_t start(std::vector<std::string> arguments) const {
    const pid_t child = ::fork();
    if (child != 0) return child;
    const int out = ::open((folder.path() / "out.txt").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    const int err = ::open((folder.path() / "err.txt").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (::chdir(folder.path().c_str()) != 0 || ::dup2(out, 1) < 0 || ::dup2(err, 2) < 0) ::_exit(126);
    ::setenv("OMP_NUM_THREADS", "1", 1);
    std::vector<char*> argv{const_cast<char*>(SFA_BINARY)};
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  [[nodiscard]] int exit_code(const std::vector<std::string>& arguments) const {
    const int status = wait_for(start(arguments));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  [[nodiscard]] std::string errors() const { return read_file(folder.path() / "err.txt"); }

  [[nodiscard]] static std::vector<std::string> train(const std::string& output, bool background) {
    return {"train", "run.yaml", "--resume", "output_dir=" + output,
            fmt::format("checkpoint.background={}", background ? "true" : "false")};
  }
  // The bytes of the last checkpoint: the same content makes the same bytes.
  [[nodiscard]] std::string final_bytes(const std::string& output) const {
    const fs::path last = find_checkpoint(folder.path() / output);
    EXPECT_EQ(last.filename(), fmt::format("step_{:08}", kSteps));
    CheckpointReader(last).verify();
    return read_file(last / "rank_00000.h5");
  }
};

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
  const pid_t child = start(train("stopped", true));
  int status = 0;
  bool ended = false;
  while (!ended && list_checkpoints(folder.path() / "stopped").empty()) {
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
  EXPECT_TRUE(leftovers(folder.path() / "stopped").empty());
  ASSERT_EQ(exit_code(train("stopped", true)), 0) << errors();
  ASSERT_EQ(exit_code(train("calm", true)), 0) << errors();
  EXPECT_TRUE(final_bytes("stopped") == final_bytes("calm"));
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
