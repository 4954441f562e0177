// sfa doctor: what it says of this machine is true, and what is broken makes it fail.
#include <nlohmann/json.hpp>
#include <thread>

#include "app/program.h"

namespace sfa::test {
namespace {

class AppDoctor : public AppTest {
 protected:
  static const nlohmann::json& finding(const nlohmann::json& report, const std::string& what) {
    for (const nlohmann::json& f : report["findings"])
      if (f["what"] == what) return f;
    static const nlohmann::json none;
    ADD_FAILURE() << "nothing about " << what << " in " << report.dump(2);
    return none;
  }
};

TEST_F(AppDoctor, SaysWhatThereIs) {
  const auto before = snapshot();
  const Ended ended = sfa({"doctor", "--json"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  const nlohmann::json report = nlohmann::json::parse(ended.out);
  EXPECT_TRUE(report["healthy"].get<bool>());
  EXPECT_EQ(report["machine"]["cores"], std::thread::hardware_concurrency());
  EXPECT_GT(report["machine"]["memory_bytes"].get<double>(), 1e8);
  EXPECT_EQ(report["build"]["hdf5"].get<std::string>().substr(0, 2), "1.");
  const auto revision = report["build"]["git_revision"].get<std::string>();
  EXPECT_TRUE(revision == "unknown" || revision.size() == 40) << revision;
  for (const char* what : {"BLAS", "HDF5", "processor", "threads", "GPU", "disk"}) finding(report, what);
  EXPECT_EQ(finding(report, "BLAS")["level"], "ok");
  const Ended text = sfa({"doctor"});
  EXPECT_EQ(text.code, 0);
  for (const char* word : {"this build", "this machine", "BLAS", "free for"})
    EXPECT_NE(text.out.find(word), std::string::npos) << text.out;
  EXPECT_EQ(snapshot(), before);
}

TEST_F(AppDoctor, LooksAtARun) {
  const Ended good = sfa({"doctor", at("run.yaml"), "--json"});
  ASSERT_EQ(good.code, 0) << good.err;
  EXPECT_EQ(finding(nlohmann::json::parse(good.out), "run")["level"], "ok");
  const Ended large = sfa({"doctor", at("run.yaml"), "model.hidden_size=65536", "model.attention.qk_head_dim=64",
                           "model.num_hidden_layers=64", "--json"});
  EXPECT_EQ(large.code, 1);
  EXPECT_NE(large.err.find("broken: run"), std::string::npos) << large.err;
  const nlohmann::json report = nlohmann::json::parse(large.out);
  EXPECT_FALSE(report["healthy"].get<bool>());
  EXPECT_NE(finding(report, "run")["detail"].get<std::string>().find("not enough memory"), std::string::npos);
  EXPECT_EQ(finding(report, "disk")["level"], "BROKEN");
  EXPECT_EQ(sfa({"doctor", at("nothing.yaml")}).code, 1);
}

}  // namespace
}  // namespace sfa::test
