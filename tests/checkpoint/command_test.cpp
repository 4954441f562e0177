// sfa checkpoint list | verify | prune, as a user meets them.
#include <array>

#include "checkpoint/helpers.h"

namespace sfa::test {
namespace {

struct Outcome {
  int code = -1;
  std::string out, err;
};

// Runs `sfa checkpoint ARGUMENTS`; the run folder is the current folder.
Outcome run_command(const fs::path& run, const std::string& arguments) {
  const fs::path out = run / "out.txt", err = run / "err.txt";
  const std::string line = fmt::format("cd '{}' && '{}' checkpoint {} >'{}' 2>'{}'", run.string(), SFA_BINARY,
                                       arguments, out.string(), err.string());
  const int status = std::system(line.c_str());
  const Outcome outcome{WEXITSTATUS(status), read_file(out), read_file(err)};
  fs::remove(out);
  fs::remove(err);
  return outcome;
}

struct Command : ::testing::Test {
  TempFolder folder;
  fs::path run = folder.path() / "run";
  void SetUp() override {
    for (const int step : {10, 20, 30, 1234567}) save(run, step);
  }
  // Flips a byte in the middle of a tensor.
  void damage(const std::string& checkpoint) const {
    const fs::path path = run / checkpoint / "rank_00000.h5";
    std::string content = read_file(path);
    const std::string needle(reinterpret_cast<const char*>(samples(20, 100)[0].data.data()), 16);
    const std::size_t at = content.find(needle);
    ASSERT_NE(at, std::string::npos);
    content[at + 7] = static_cast<char>(content[at + 7] ^ 4);
    write_file(path, content);
  }
};

TEST_F(Command, List) {
  const Outcome all = run_command(folder.path(), "list run");
  EXPECT_EQ(all.code, 0) << all.err;
  EXPECT_EQ(std::count(all.out.begin(), all.out.end(), '\n'), 4);
  EXPECT_LT(all.out.find("run/step_00000010"), all.out.find("run/step_01234567"));
  EXPECT_NE(all.out.find("1,234,567"), std::string::npos);
  EXPECT_NE(all.out.find("6 tensors"), std::string::npos);
  write_file(run / "step_00000020" / "manifest.json", "{}");
  const nlohmann::json list = nlohmann::json::parse(run_command(folder.path(), "list run --json").out);
  ASSERT_EQ(list.size(), 4u);
  EXPECT_EQ(list[0].at("step"), 10);
  EXPECT_EQ(list[0].at("path"), "run/step_00000010");
  EXPECT_EQ(list[0].at("bytes"), fs::file_size(run / "step_00000010" / "rank_00000.h5"));
  EXPECT_EQ(list[1].at("good"), false);
  EXPECT_NE(list[1].at("error").get<std::string>().find("is not the manifest"), std::string::npos);
}

TEST_F(Command, Verify) {
  EXPECT_EQ(run_command(folder.path(), "verify run").code, 0);
  damage("step_00000020");
  const Outcome all = run_command(folder.path(), "verify run");
  EXPECT_EQ(all.code, 1);
  EXPECT_EQ(all.err, "sfa: 1 of 4 checkpoints damaged\n");
  EXPECT_NE(all.out.find("DAMAGED  run/step_00000020/rank_00000.h5 is damaged: elements [0, 300) of tensor"),
            std::string::npos)
      << all.out;
  EXPECT_NE(all.out.find("step_01234567: every checksum matches"), std::string::npos) << "it goes on after the first";
  EXPECT_EQ(run_command(folder.path(), "verify run/step_00000010").code, 0);
  const Outcome one = run_command(folder.path(), "verify run/step_00000020 --json");
  EXPECT_EQ(one.code, 1);
  EXPECT_EQ(nlohmann::json::parse(one.out).at(0).at("good"), false);
}

TEST_F(Command, Prune) {
  fs::copy(run / "step_00000010", run / ".step_00000040.tmp");
  const Outcome outcome = run_command(folder.path(), "prune run --keep-last 1 --keep-every 20");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "deleted run/step_00000010\ndeleted run/step_00000030\nkept 2 in run\n");
  EXPECT_TRUE(leftovers(run).empty());
}

TEST_F(Command, Mistakes) {
  for (const char* line : {"list none", "verify none", "prune none --keep-last 1"}) {
    const Outcome outcome = run_command(folder.path(), line);
    EXPECT_EQ(outcome.code, 1) << line;
    EXPECT_EQ(outcome.err, "sfa: there is no checkpoint and no run folder none\n");
  }
  for (const char* line : {"", "list", "prune run", "prune run --keep-last 0", "prune run --keep-last x",
                           "prune run --keep-last 1 --keep-every -1", "verfy run"})
    EXPECT_EQ(run_command(folder.path(), line).code, 2) << line;
  EXPECT_NE(run_command(folder.path(), "prune run/step_00000010 --keep-last 1").err.find("is a checkpoint"),
            std::string::npos);
  EXPECT_EQ(list_checkpoints(run).size(), 4u);
  fs::create_directory(folder.path() / "empty");
  EXPECT_EQ(run_command(folder.path(), "list empty").err, "sfa: empty holds no finished checkpoint\n");
}

}  // namespace
}  // namespace sfa::test
