// Runs the program that users run, and looks at what it leaves on disk.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace sfa::test {

namespace fs = std::filesystem;

struct Ended {
  int code = -1;    // exit code; -1 when a signal ended it
  int signal = 0;   // the signal that ended it
  std::string out;  // standard output
  std::string err;  // standard error
};

inline std::string read_text(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

inline void write_text(const fs::path& file, const std::string& text) {
  std::ofstream(file, std::ios::binary | std::ios::trunc) << text;
}

/// A started `sfa`, or another program, perhaps under a launcher; its output goes to two files in `scratch`.
class Program {
 public:
  Program(std::vector<std::string> arguments, const fs::path& scratch, const std::string& input = "/dev/null",
          const std::vector<std::string>& launcher = {}, const std::string& other_binary = "")
      : out_(scratch / "stdout"), err_(scratch / "stderr") {
    const char* named = std::getenv("SFA_BINARY");
    arguments.insert(arguments.begin(), !other_binary.empty() ? other_binary : named ? named : SFA_BINARY);
    arguments.insert(arguments.begin(), launcher.begin(), launcher.end());
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ != 0) return;
    const int in = ::open(input.c_str(), O_RDONLY);
    const int out = ::open(out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    const int err = ::open(err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    ::dup2(in, 0);
    ::dup2(out, 1);
    ::dup2(err, 2);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }

  void send(int signal) const { ::kill(pid_, signal); }
  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] bool running() {
    int status = 0;
    if (pid_ <= 0) return false;
    if (::waitpid(pid_, &status, WNOHANG) == 0) return true;
    finish(status);
    return false;
  }
  Ended wait() {
    int status = 0;
    if (pid_ > 0 && ::waitpid(pid_, &status, 0) == pid_) finish(status);
    ended_.out = read_text(out_);
    ended_.err = read_text(err_);
    return ended_;
  }

 private:
  void finish(int status) {
    pid_ = 0;
    if (WIFEXITED(status)) ended_.code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) ended_.signal = WTERMSIG(status);
  }
  fs::path out_, err_;
  pid_t pid_ = 0;
  Ended ended_;
};

/// A folder for one test with a small token file, data.h5, and a small recipe, run.yaml.
class AppTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string(info->test_suite_name()) + "_" + info->name() + "_" + std::to_string(::getpid());
    std::replace(name.begin(), name.end(), '/', '_');
    top_ = fs::temp_directory_path() / ("sfa_app_" + name);
    fs::remove_all(top_);
    fs::create_directories(top_ / "work");
    fs::create_directories(top_ / "scratch");
    write_text(at("text.txt"), text(6000, 7));
    const Ended made = sfa({"data", "tokenize", "--val-fraction", "0.1", "--output", at("data.h5"), at("text.txt")});
    ASSERT_EQ(made.code, 0) << made.err;
    write_text(at("run.yaml"), "output_dir: " + at("run") + "\ndevice: cpu\nseed: 3\n" +
                                   "model:\n  num_hidden_layers: 2\n  num_attention_heads: 2\n  hidden_size: 16\n"
                                   "  max_position_embeddings: 16\n  attention: {type: sfa, k: 4}\n"
                                   "data: {train: " +
                                   at("data.h5") +
                                   ", batch_size: 4, micro_batch_size: 2}\n"
                                   "train: {max_steps: 40, lr: 0.01, eval_every: 20, log_every: 5}\n"
                                   "checkpoint: {every: 4, keep_last: 2}\n");
  }
  void TearDown() override { fs::remove_all(top_); }

  /// A path in the folder that commands work in.
  [[nodiscard]] std::string at(const std::string& name) const { return (top_ / "work" / name).string(); }

  Ended sfa(std::vector<std::string> arguments) const { return Program(std::move(arguments), top_ / "scratch").wait(); }
  [[nodiscard]] fs::path scratch() const { return top_ / "scratch"; }

  /// Everything under the working folder: path -> content ("" of a folder).
  [[nodiscard]] std::map<std::string, std::string> snapshot() const {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(top_ / "work"))
      all[entry.path().string()] = entry.is_regular_file() ? read_text(entry.path()) : "";
    return all;
  }

  /// Words that look like text, different for each seed.
  static std::string text(std::size_t bytes, std::uint32_t seed) {
    constexpr std::array kWords{"the ", "query ", "meets ", "a key, ", "and values\n", "sum. ", "Sparse ", "features "};
    std::string out;
    while (out.size() < bytes) {
      seed = seed * 1664525u + 1013904223u;
      out += kWords[seed >> 29];
    }
    return out;
  }

  /// Every tensor of a run's newest checkpoint, bit for bit.
  static std::map<std::string, std::vector<std::uint8_t>> tensors(const std::string& run) {
    CheckpointReader reader(find_checkpoint(run));
    std::map<std::string, std::vector<std::uint8_t>> all;
    for (const auto& [name, tensor] : reader.tensors()) {
      std::vector<std::uint8_t>& bytes = all[name];
      bytes.resize(static_cast<std::size_t>(tensor.numel()) * size_of(tensor.dtype));
      reader.read(name, 0, tensor.numel(), bytes.data());
    }
    return all;
  }

  fs::path top_;
};

}  // namespace sfa::test
