// What users do to checkpoints and run folders by mistake: one sentence, exit code 1, nothing lost.
#include <sys/stat.h>

#include "checkpoint/run_fixture.h"

namespace sfa::test {
namespace {

struct BadInput : RunFixture {
  void SetUp() override {
    RunFixture::SetUp();
    ASSERT_EQ(exit_code(short_run()), 0) << errors();
  }
  // Four steps, two checkpoints.
  [[nodiscard]] static std::vector<std::string> short_run(const std::vector<std::string>& more = {}) {
    std::vector<std::string> line = {"train", "run.yaml", "output_dir=run", "train.max_steps=4", "checkpoint.every=2"};
    line.insert(line.end(), more.begin(), more.end());
    return line;
  }
  void expect_refused(const std::vector<std::string>& arguments, const std::string& part) const {
    EXPECT_EQ(exit_code(arguments), 1) << arguments[0];
    const std::string text = errors();
    EXPECT_NE(text.find(part), std::string::npos) << text;
    EXPECT_TRUE(text.starts_with("sfa: ")) << text;
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  }
  void expect_everybody_refuses(const std::string& part) const {
    expect_refused(short_run({"--resume", "train.max_steps=8"}), part);
    expect_refused({"eval", "perplexity", "--checkpoint", "run", "--data", "data.h5"}, part);
    expect_refused({"generate", "--checkpoint", "run", "--prompt", "1", "--max-tokens", "2"}, part);
  }
  [[nodiscard]] fs::path newest() const { return folder.path() / "run" / "step_00000004"; }
  // Every file of the run folder and what is in it.
  [[nodiscard]] std::map<std::string, std::string> contents() const {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(folder.path() / "run"))
      if (entry.is_regular_file() && entry.path().filename() != "train.log")
        all[entry.path().string()] = read_file(entry.path());
    return all;
  }
};

TEST_F(BadInput, NoCheckpoint) {
  for (const char* where : {"none", "empty", "data.h5"}) {
    if (where == std::string("empty")) fs::create_directory(folder.path() / where);
    const std::string part = where == std::string("none")    ? "there is no checkpoint and no run folder none"
                             : where == std::string("empty") ? "empty holds no finished checkpoint"
                                                             : "data.h5 is a file; a checkpoint is a folder";
    expect_refused({"eval", "perplexity", "--checkpoint", where, "--data", "data.h5"}, part);
    expect_refused({"generate", "--checkpoint", where, "--prompt", "1", "--max-tokens", "2"}, part);
  }
}

TEST_F(BadInput, DamagedCheckpoint) {
  const auto before = contents();
  const std::string manifest = read_file(newest() / "manifest.json"), data = read_file(newest() / "rank_00000.h5");
  write_file(newest() / "manifest.json", "");
  expect_everybody_refuses("is not the manifest of a checkpoint");
  write_file(newest() / "manifest.json", manifest.substr(0, manifest.size() / 2));
  expect_everybody_refuses("manifest.json is damaged");
  write_file(newest() / "manifest.json", manifest);
  write_file(newest() / "rank_00000.h5", data.substr(0, data.size() - 1));
  expect_everybody_refuses("the checkpoint is truncated");
  fs::remove(newest() / "rank_00000.h5");
  expect_everybody_refuses("rank_00000.h5 does not exist");
  write_file(newest() / "rank_00000.h5", data);
  EXPECT_EQ(contents(), before);
  // A bit in every tensor, so that weights are hit for whoever reads only those.
  std::string flipped = data;
  for (std::size_t at = 4096; at < flipped.size(); at += 64) flipped[at] = static_cast<char>(flipped[at] ^ 1);
  write_file(newest() / "rank_00000.h5", flipped);
  expect_everybody_refuses("do not match their checksum; resume from another checkpoint");
  // With the damaged one out of the way the one before is taken.
  fs::remove_all(newest());
  EXPECT_EQ(exit_code(short_run({"--resume"})), 0) << errors();
  EXPECT_TRUE(read_file(newest() / "rank_00000.h5") == data);
}

TEST_F(BadInput, AnotherRunInTheFolder) {
  const auto before = contents();
  expect_refused(short_run(), "holds a run already; continue it with --resume, or name another output_dir");
  expect_refused(short_run({"--resume", "model.hidden_size=64"}), "hidden_size: 64");
  expect_refused(short_run({"--resume", "model.attention.type=dense"}), "dense");
  expect_refused(short_run({"--resume", "data.seq_len=16"}), "seq_len: 16");
  EXPECT_EQ(contents(), before);
}

TEST_F(BadInput, FoldersThatCannotBeWritten) {
  write_file(folder.path() / "file", "x");
  expect_refused(short_run({"output_dir=file"}), "file");
  expect_refused(short_run({"output_dir=file/run"}), "file");
  EXPECT_EQ(read_file(folder.path() / "file"), "x");
  if (::geteuid() != 0) {
    fs::create_directory(folder.path() / "closed");
    ASSERT_EQ(::chmod((folder.path() / "closed").c_str(), 0555), 0);
    expect_refused(short_run({"output_dir=closed/run"}), "Permission denied");
    expect_refused(short_run({"output_dir=closed"}), "Permission denied");
  }
}

}  // namespace
}  // namespace sfa::test
