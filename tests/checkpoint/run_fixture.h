// A folder with a token file and the configuration of a very small run, and `sfa` run in it as a user would.
#pragma once

#include <fcntl.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "checkpoint/helpers.h"

namespace sfa::test {

inline constexpr int kSteps = 24;

struct RunFixture : ::testing::Test {
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

  [[nodiscard]] static std::vector<std::string> train(const std::string& output, bool background,
                                                      const std::vector<std::string>& more = {}) {
    std::vector<std::string> command{"train", "run.yaml", "--resume", "output_dir=" + output,
                                     fmt::format("checkpoint.background={}", background ? "true" : "false")};
    command.insert(command.end(), more.begin(), more.end());
    return command;
  }
  // `sfa train` into a folder, every step in the metrics; goes on where it has begun.
  [[nodiscard]] static std::vector<std::string> logged(const std::string& output,
                                                       const std::vector<std::string>& more) {
    std::vector<std::string> command{"train", "run.yaml", "--resume", "output_dir=" + output, "train.log_every=1"};
    command.insert(command.end(), more.begin(), more.end());
    return command;
  }
  [[nodiscard]] int run(const std::string& output, const std::vector<std::string>& more) const {
    return exit_code(logged(output, more));
  }
  // A key's values, line by line of the metrics.
  [[nodiscard]] std::vector<double> metric(const std::string& output, const char* key) const {
    std::vector<double> all;
    std::istringstream text(read_file(folder.path() / output / "metrics.jsonl"));
    for (std::string line; std::getline(text, line);) {
      const auto object = nlohmann::json::parse(line);
      if (object.contains(key)) all.push_back(object[key].get<double>());
    }
    return all;
  }
  // Killed after its first checkpoint and started again, a run ends with the bits of one that was left alone.
  void expect_cut_ends_like_whole(const std::vector<std::string>& more) const {
    ASSERT_EQ(run("whole", more), 0) << errors();
    const pid_t child = start(logged("cut", more));
    while (list_checkpoints(folder.path() / "cut").empty()) ::usleep(1000);
    ::kill(child, SIGKILL);
    (void)wait_for(child);
    ASSERT_EQ(run("cut", more), 0) << errors();
    EXPECT_EQ(final_bytes("whole"), final_bytes("cut"));
  }
  // The bytes of the last checkpoint: the same content makes the same bytes.
  [[nodiscard]] std::string final_bytes(const std::string& output) const {
    const fs::path last = find_checkpoint(folder.path() / output);
    EXPECT_EQ(last.filename(), fmt::format("step_{:08}", kSteps));
    CheckpointReader(last).verify();
    return read_file(last / "rank_00000.h5");
  }
};

}  // namespace sfa::test
