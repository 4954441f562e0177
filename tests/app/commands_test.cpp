// The commands of the README, one after another, as a user types them.
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "app/program.h"

namespace sfa::test {
namespace {

class AppCommands : public AppTest {
 protected:
  nlohmann::json json_of(const std::vector<std::string>& arguments) const {
    const Ended ended = sfa(arguments);
    EXPECT_EQ(ended.code, 0) << ended.err;
    return nlohmann::json::parse(ended.out);
  }
};

TEST_F(AppCommands, FromTextToComparison) {
  const nlohmann::json info = json_of({"data", "info", at("data.h5"), "--json"});
  EXPECT_EQ(info["vocab_size"], 257);
  for (const char* type : {"dense", "sfa"}) {
    const std::string k = std::string(type) == "sfa" ? "4" : "0";
    const Ended ended = sfa({"train", at("run.yaml"), "output_dir=" + at(type),
                             std::string("model.attention.type=") + type, "model.attention.k=" + k});
    ASSERT_EQ(ended.code, 0) << ended.err;
    EXPECT_NE(ended.err.find("step 40/40"), std::string::npos) << ended.err;
    for (const char* file : {"config.yaml", "run.json", "metrics.jsonl", "train.log", "step_00000040/manifest.json"})
      EXPECT_TRUE(fs::exists(at(type) + "/" + file)) << file;
  }
  const nlohmann::json ppl =
      json_of({"eval", "perplexity", "--checkpoint", at("sfa"), "--data", at("data.h5"), "--json"});
  const double loss = ppl["loss"].get<double>();
  EXPECT_LT(loss, 4.0) << "40 steps learn something of text with eight words";
  EXPECT_NEAR(ppl["ppl"].get<double>(), std::exp(loss), 1e-9 * std::exp(loss));
  EXPECT_NEAR(ppl["bits_per_byte"].get<double>(), loss / std::log(2.0), 0.05);
  EXPECT_EQ(ppl["tokens"].get<std::int64_t>(), info["val_tokens"].get<std::int64_t>() - 1);

  const nlohmann::json runs = json_of({"compare", at("dense"), at("sfa"), "--json"});
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0]["attention"], "dense");
  EXPECT_EQ(runs[1]["attention"], "sfa k=4");
  // The same sums over batches of another size.
  EXPECT_NEAR(runs[1]["val_loss"].get<double>(), loss, 1e-6);
  EXPECT_GT(runs[0]["attention_flops_per_token"], runs[1]["attention_flops_per_token"]);
  // fp32: dense 2 layers x 2 heads x (8 + 8) values of 4 bytes; sfa 4 values and 4 indices beside the 8 values.
  EXPECT_EQ(runs[0]["kv_bytes_per_token"], 2 * 2 * 16 * 4);
  EXPECT_EQ(runs[1]["kv_bytes_per_token"], 2 * 2 * (4 * 5 + 8 * 4));
  EXPECT_GT(runs[0]["train_seconds"], 0);
  const Ended table = sfa({"compare", at("dense"), at("sfa")});
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_NE(table.out.find("sfa k=4 against dense: loss "), std::string::npos) << table.out;
}

TEST_F(AppCommands, BenchStepTimesTheRunWithoutTouchingIt) {
  const auto before = snapshot();
  const nlohmann::json bench =
      json_of({"bench", "step", at("run.yaml"), "--steps", "3", "--warmup", "1", "--json", "data.batch_size=8"});
  EXPECT_EQ(bench["steps"], 3);
  EXPECT_GT(bench["step_ms"].get<double>(), 0);
  EXPECT_NEAR(bench["tokens_per_sec"].get<double>() * bench["step_ms"].get<double>(), 8 * 16 * 1000.0, 1e-3);
  double sum = 0;
  std::set<std::string> kinds;
  for (const auto& op : bench["ops"]) {
    sum += op["ms"].get<double>();
    kinds.insert(op["kind"].get<std::string>());
  }
  EXPECT_LE(sum, bench["watched_step_ms"].get<double>() * 1.0001);
  EXPECT_GT(sum, 0.7 * bench["watched_step_ms"].get<double>()) << "ops are missing in the table";
  for (const char* kind : {"linear forward", "linear d_weight", "norm backward", "attention sfa backward", "select",
                           "classifier softmax", "adamw", "gradient norm"})
    EXPECT_TRUE(kinds.contains(kind)) << kind;
  EXPECT_GT(bench["ceiling_tflops"].get<double>(), 0);
  EXPECT_EQ(snapshot(), before) << "a measurement leaves no run folder";
  EXPECT_EQ(sfa({"bench"}).code, 2);
}

TEST_F(AppCommands, GenerateIsRepeatable) {
  ASSERT_EQ(sfa({"train", at("run.yaml")}).code, 0);
  const std::vector<std::string> command{"generate", "--checkpoint",  at("run"), "--prompt", "the ", "--max-tokens",
                                         "50",       "--temperature", "0.8",     "--top-k",  "20",   "--seed",
                                         "5"};
  const Ended first = sfa(command), second = sfa(command);
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(first.out, second.out);
  EXPECT_EQ(first.out.rfind("the ", 0), 0u);
  EXPECT_GT(first.out.size(), 40u);
}

TEST_F(AppCommands, FlopsGrowWithLength) {
  const nlohmann::json rows = json_of({"flops", at("run.yaml"), "--context", "8,16", "--json"});
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1]["context"], 16);
  // Causal pairs a token: (T + 1) / 2; a pair costs 2 * (k^2 / d + d_v), two heads and two layers.
  const double pair = 2.0 * (4.0 * 4.0 / 8.0 + 8.0);
  EXPECT_DOUBLE_EQ(rows[0]["attention_flops_per_token"].get<double>(), 4.5 * pair * 2 * 2);
  EXPECT_DOUBLE_EQ(rows[1]["attention_flops_per_token"].get<double>(), 8.5 * pair * 2 * 2);
  EXPECT_EQ(rows[0]["parameters"], rows[1]["parameters"]);
}

TEST_F(AppCommands, ARunSaysWhatItWasMadeWithAndWhere) {
  ASSERT_EQ(sfa({"train", at("run.yaml"), "train.max_steps=1"}).code, 0);
  const nlohmann::json run = nlohmann::json::parse(read_text(at("run") + "/run.json"));
  const nlohmann::json doctor = json_of({"doctor", "--json"});
  EXPECT_EQ(run["build"], doctor["build"]);
  for (const char* key : {"host", "system", "cpu", "cores", "memory_bytes", "nvidia_driver", "cuda_driver", "cards"})
    EXPECT_EQ(run["machine"].at(key), doctor["machine"].at(key)) << key;
  char host[256] = {};
  ::gethostname(host, sizeof host - 1);
  EXPECT_EQ(run["machine"]["host"], host);
  EXPECT_EQ(run["dtype"], "f32");
}

TEST_F(AppCommands, PlanCountsWithoutRunning) {
  const auto before = snapshot();
  const nlohmann::json plan = json_of({"plan", at("run.yaml"), "--json", "--memory", "1GB"});
  const std::int64_t C = 16, F = 64, L = 2;
  EXPECT_EQ(plan["parameters"]["embeddings"], (257 + 16) * C);
  EXPECT_EQ(plan["parameters"]["attention"], L * (4 * C * C + 4 * C));
  EXPECT_EQ(plan["parameters"]["mlp"], L * (2 * C * F + F + C));
  EXPECT_EQ(plan["parameters"]["norms"], (2 * L + 1) * 2 * C);
  EXPECT_EQ(plan["memory_bytes"]["gradients"], plan["memory_bytes"]["weights"]);
  std::int64_t sum = 0;
  for (const auto& [name, bytes] : plan["memory_bytes"].items())
    if (name != "total") sum += bytes.get<std::int64_t>();
  EXPECT_EQ(plan["memory_bytes"]["total"], sum);
  // Two layers of two heads of 8: k = 4 values and indices of a query and of a key, v, the output and a log-sum-exp.
  EXPECT_EQ(plan["attention_saved_bytes_per_token"], L * 2 * (2 * 4 * 5 + 2 * 8 * 4 + 4));
  EXPECT_EQ(plan["tokens_per_step"], 64);
  EXPECT_GT(plan["largest_micro_batch_size"], 100);
  EXPECT_EQ(plan["largest_micro_batch_size_of_batch"], 4);
  // The vocabulary comes from the data, or from the configuration when there is none.
  EXPECT_EQ(
      json_of({"plan", at("run.yaml"), "data.train=none.h5", "model.vocab_size=257", "--memory", "1GB", "--json"}),
      plan);
  const Ended missing = sfa({"plan", at("run.yaml"), "data.train=none.h5"});
  EXPECT_EQ(missing.code, 1);
  EXPECT_NE(missing.err.find("model.vocab_size=50257"), std::string::npos) << missing.err;
  EXPECT_EQ(sfa({"plan", at("run.yaml"), "--memory", "much"}).code, 2);
  const Ended table = sfa({"plan", at("run.yaml"), "--memory", "1KB"});
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_NE(table.out.find("not even one"), std::string::npos) << table.out;
  EXPECT_EQ(snapshot(), before);
}

TEST_F(AppCommands, StandardInputIsText) {
  const Ended ended = Program({"data", "tokenize", "--output", at("in.h5"), "-"}, scratch(), at("text.txt")).wait();
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(json_of({"data", "info", at("in.h5"), "--json"})["tokens"],
            json_of({"data", "info", at("data.h5"), "--json"})["tokens"]);
}

TEST_F(AppCommands, HelpAndVersion) {
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"--help"}, {"--version"}, {"train", "--help"}}) {
    const Ended ended = sfa(command);
    EXPECT_EQ(ended.code, 0);
    EXPECT_NE(ended.out, "");
    EXPECT_EQ(ended.err, "");
  }
}

}  // namespace
}  // namespace sfa::test
