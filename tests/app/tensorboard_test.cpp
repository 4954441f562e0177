// TensorBoard reads what training writes: the same figures as metrics.jsonl, also after a run was killed and resumed.
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "app/program.h"

namespace sfa::test {
namespace {

class AppTensorBoard : public AppTest {
 protected:
  // What read_events.py prints; nothing where there is no Python with the package tensorboard (SFA_PYTHON names one).
  static std::optional<nlohmann::json> read_by_tensorboard(const std::string& folder) {
    const char* named = std::getenv("SFA_PYTHON");
    const std::string python = named ? named : "python3";
    if (std::system((python + " -c 'import tensorboard' 2>/dev/null").c_str()) != 0) return std::nullopt;
    const std::string command = python + " " SFA_SOURCE_DIR "/tests/app/read_events.py " + folder + " 2>/dev/null";
    FILE* pipe = ::popen(command.c_str(), "r");
    std::string out;
    for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) out += static_cast<char>(c);
    EXPECT_EQ(::pclose(pipe), 0) << out;
    return nlohmann::json::parse(out);
  }

  // {tag: [[step, value], ...]} of metrics.jsonl.
  static nlohmann::json lines_by_tag(const std::string& folder) {
    nlohmann::json all;
    std::istringstream in(read_text(folder + "/metrics.jsonl"));
    for (std::string line; std::getline(in, line);) {
      const nlohmann::json object = nlohmann::json::parse(line);
      for (const auto& [tag, value] : object.items())
        if (tag != "step") all[tag].push_back({object["step"], value});
    }
    return all;
  }

  static bool has_events(const std::string& folder) {
    return std::any_of(fs::directory_iterator(folder), fs::directory_iterator(), [](const auto& entry) {
      return entry.path().filename().string().starts_with("events.out.tfevents.");
    });
  }
};

TEST_F(AppTensorBoard, ReadsTheFiguresOfMetricsAfterAResumeToo) {
  ASSERT_EQ(sfa({"train", at("run.yaml"), "train.tensorboard=true", "train.max_steps=12", "checkpoint.every=8",
                 "train.schedule=constant", "train.log_every=1"})
                .code,
            0);
  // Steps 9 to 12 are lost with their checkpoint, as after a crash, and run again.
  fs::remove_all(at("run") + "/step_00000012");
  const Ended resumed = sfa({"train", at("run.yaml"), "train.tensorboard=true", "train.max_steps=20",
                             "checkpoint.every=8", "train.schedule=constant", "train.log_every=1", "--resume"});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  ASSERT_NE(resumed.err.find("resuming"), std::string::npos) << resumed.err;
  ASSERT_TRUE(has_events(at("run")));
  const nlohmann::json expected = lines_by_tag(at("run"));
  ASSERT_EQ(expected["train/loss"].size(), 20u);
  const auto seen = read_by_tensorboard(at("run"));
  if (!seen) GTEST_SKIP() << "no Python with the package tensorboard; SFA_PYTHON names one";
  ASSERT_EQ(seen->size(), expected.size()) << seen->dump();
  for (const auto& [tag, series] : expected.items()) {
    ASSERT_EQ(seen->at(tag).size(), series.size()) << tag;
    for (std::size_t i = 0; i < series.size(); ++i) {
      EXPECT_EQ((*seen)[tag][i][0], series[i][0]) << tag;
      const double value = series[i][1].get<double>();
      EXPECT_NEAR((*seen)[tag][i][1].get<double>(), value, 1e-6 * std::fabs(value)) << tag;
    }
  }
}

TEST_F(AppTensorBoard, IsByOption) {
  ASSERT_EQ(sfa({"train", at("run.yaml"), "train.max_steps=2"}).code, 0);
  EXPECT_FALSE(has_events(at("run")));
}

}  // namespace
}  // namespace sfa::test
