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
  // Of the k that stays, and whole turns of steps that distil and steps that do not.
  const auto selection = [](const nlohmann::json& of) {
    for (const auto& op : of["ops"])
      if (op["kind"] == "select") return op["shape"].get<std::string>();
    return std::string();
  };
  const nlohmann::json annealed =
      json_of({"bench", "step", at("run.yaml"), "--steps", "3", "--warmup", "1", "--json", "data.batch_size=8",
               "train.k_anneal.from=8", "train.distill.lambda=0.1", "train.distill.every=4"});
  EXPECT_EQ(annealed["steps"], 4);
  EXPECT_EQ(selection(annealed), selection(bench));
  EXPECT_NE(selection(bench), "");
  EXPECT_EQ(sfa({"bench"}).code, 2);
}

TEST_F(AppCommands, BenchAttentionTimesRandomAndTrainedSupports) {
  ASSERT_EQ(sfa({"train", at("run.yaml")}).code, 0);
  const nlohmann::json layers = json_of(
      {"analyze", "support", "--checkpoint", at("run"), "--data", at("data.h5"), "--dump", at("rows.h5"), "--json"});
  ASSERT_EQ(layers.size(), 2u);
  for (const auto& layer : layers) {
    EXPECT_GT(layer["overlapping_pairs"].get<double>(), 0.5) << "4 of 8 features each";
    EXPECT_NEAR(layer["mean_overlap_uniform"].get<double>(), 4.0 * 4 / 8, 1e-9);
    EXPECT_GE(layer["mean_overlap"].get<double>(), layer["overlapping_pairs"].get<double>());
    EXPECT_LE(layer["key_entropy"].get<double>(), 1.0);
  }
  const std::vector<std::string> shape{"--d", "8",       "--k", "2,4",           "--n", "32..64",   "--heads",
                                       "2",   "--batch", "2",   "--repetitions", "3",   "--device", "cpu"};
  for (const char* op : {"forward", "backward", "decode"})
    for (const std::string& supports : {std::string("random"), at("rows.h5")}) {
      std::vector<std::string> command{"bench",  "attention", "--op",       op,       "--supports",
                                       supports, "--json",    at("t.json"), "--plot", at("t.svg")};
      command.insert(command.end(), shape.begin(), shape.end());
      const Ended ended = sfa(command);
      ASSERT_EQ(ended.code, 0) << ended.err;
      const nlohmann::json rows = nlohmann::json::parse(read_text(at("t.json")))["rows"];
      ASSERT_EQ(rows.size(), 6u) << "two lengths of dense, k = 2 and k = 4";
      for (const auto& row : rows) {
        EXPECT_GT(row["ms"].get<double>(), 0);
        EXPECT_EQ(row["type"] == "sfa", row["selection_ms"].get<double>() > 0);
        const double n = row["n"].get<double>(), pairs = op == std::string("decode") ? n : n * n / 2;
        const double flops = 2 * 2 * 2 * pairs * 8 * (op == std::string("backward") ? 5 : 2);
        EXPECT_NEAR(row["tflops_dense_equivalent"].get<double>() * row["ms"].get<double>() * 1e9, flops, 1e-6 * flops);
        EXPECT_NEAR(row["ratio_to_dense"].get<double>() * row["ms"].get<double>(),
                    rows[n == 32 ? 0 : 3]["ms"].get<double>(), 1e-9);
      }
      const std::string plot = read_text(at("t.svg"));
      EXPECT_EQ(plot.rfind("<svg", 0), 0u);
      EXPECT_NE(plot.find("sfa k=4 d=8"), std::string::npos);
    }
  // One of two ranks that share the sequences has half of the pairs.
  for (const char* op : {"forward", "backward"}) {
    std::vector<std::string> command{"bench", "attention", "--op",      op, "--context-parallel",
                                     "2",     "--json",    at("t.json")};
    command.insert(command.end(), shape.begin(), shape.end());
    const Ended ended = sfa(command);
    ASSERT_EQ(ended.code, 0) << ended.err;
    const nlohmann::json rows = nlohmann::json::parse(read_text(at("t.json")))["rows"];
    ASSERT_EQ(rows.size(), 6u);
    for (const auto& row : rows) {
      const double n = row["n"].get<double>(), flops = 2 * 2 * n * n / 2 * 8 * (op == std::string("backward") ? 5 : 2);
      EXPECT_NEAR(row["tflops_dense_equivalent"].get<double>() * row["ms"].get<double>() * 1e9, flops, 1e-6 * flops);
    }
  }
  for (const std::vector<std::string>& wrong : {std::vector<std::string>{"--op", "decode", "--n", "64"},
                                                {"--n", "30"},
                                                {"--n", "64", "--window", "8"},
                                                {"--n", "64", "--hidden", "16"}}) {
    std::vector<std::string> command{"bench", "attention", "--context-parallel", "2", "--device", "cpu"};
    command.insert(command.end(), wrong.begin(), wrong.end());
    EXPECT_EQ(sfa(command).code, 1) << wrong.back();
  }
  EXPECT_EQ(sfa({"bench", "attention", "--n", "64..32"}).code, 2);
  EXPECT_EQ(sfa({"bench", "attention", "--supports", at("data.h5"), "--device", "cpu"}).code, 1);
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
  EXPECT_DOUBLE_EQ(
      rows[0]["step_flops_per_token"].get<double>(),
      rows[0]["forward_flops_per_token"].get<double>() + rows[0]["backward_flops_per_token"].get<double>());
  // The paper sees every pair and adds the softmax; the matrices of the model are the same.
  const nlohmann::json paper =
      json_of({"flops", at("run.yaml"), "--context", "8,16", "--convention", "paper", "--json"});
  EXPECT_DOUBLE_EQ(paper[1]["attention_flops"].get<double>(), 2 * 2 * 16 * 16 * (pair + 8 / 32.0 + 3 + 1 / 64.0));
  for (const int i : {0, 1})
    EXPECT_NEAR(paper[i]["forward_flops_per_token"].get<double>() - paper[i]["attention_flops_per_token"].get<double>(),
                rows[i]["forward_flops_per_token"].get<double>() - rows[i]["attention_flops_per_token"].get<double>(),
                1e-6);
  EXPECT_TRUE(paper[0]["backward_flops_per_token"].is_null()) << "the paper counts no backward pass";
}

TEST_F(AppCommands, NeedlesFromDataToAccuracy) {
  const Ended made =
      sfa({"data", "needle", "--seq-len", "64", "--windows", "60", "--val-fraction", "0.1", "-o", at("n.h5")});
  ASSERT_EQ(made.code, 0) << made.err;
  ASSERT_EQ(sfa({"train", at("run.yaml"), "data.train=" + at("n.h5"), "data.shuffle=false", "data.document_mask=true",
                 "model.max_position_embeddings=64", "train.max_steps=4"})
                .code,
            0);
  const nlohmann::json got = json_of({"eval", "niah", "--checkpoint", at("run"), "--lengths", "16,64", "--depths", "3",
                                      "--samples", "2", "--save", "--json"});
  ASSERT_EQ(got["cells"].size(), 6u);
  EXPECT_EQ(got["cells"][5]["length"], 64);
  EXPECT_EQ(got["by_length"].size(), 2u);
  EXPECT_EQ(nlohmann::json::parse(read_text(at("run") + "/eval/niah_synthetic.json")), got);
  const Ended map = sfa({"eval", "niah", "--checkpoint", at("run"), "--lengths", "16,64", "--depths", "3"});
  EXPECT_NE(map.out.find("depth"), std::string::npos) << map.out;
  EXPECT_EQ(sfa({"eval", "niah", "--checkpoint", at("run"), "--lengths", "65"}).code, 1);
  EXPECT_EQ(sfa({"data", "needle", "--seq-len", "64", "--lengths", "24", "-o", at("m.h5")}).code, 1);
}

TEST_F(AppCommands, TasksAreScoredAndKept) {
  ASSERT_EQ(
      sfa({"train", at("run.yaml"), "train.max_steps=4", "model.max_position_embeddings=128", "data.seq_len=16"}).code,
      0);
  const std::string folder = std::string(SFA_SOURCE_DIR) + "/tests/golden/tasks/";
  for (const char* task : {"lambada_openai", "hellaswag", "piqa", "arc_easy", "arc_challenge"}) {
    const nlohmann::json got = json_of({"eval", task, "--checkpoint", at("run"), "--file", folder + task + ".jsonl",
                                        "--limit", "2", "--save", "--json"});
    EXPECT_EQ(got["examples"], 2);
    EXPECT_EQ(got["items"].size(), 2u);
    EXPECT_EQ(got.contains("acc_norm"), task != std::string("lambada_openai"));
    EXPECT_EQ(nlohmann::json::parse(read_text(at("run") + "/eval/" + task + ".json")), got);
  }
  EXPECT_NE(sfa({"eval", "piqa", "--checkpoint", at("run"), "--file", folder + "piqa.jsonl"}).out.find("acc_norm"),
            std::string::npos);
  const Ended wrong = sfa({"eval", "piqa", "--checkpoint", at("run"), "--file", folder + "hellaswag.jsonl"});
  EXPECT_EQ(wrong.code, 1);
  EXPECT_NE(wrong.err.find("record 1 has no \"goal\""), std::string::npos) << wrong.err;
  // The first records of LAMBADA, where they are: a byte model can't know many words, but every one is scored.
  if (const char* real = std::getenv("SFA_LAMBADA")) {
    const nlohmann::json got = json_of({"eval", "lambada_openai", "--checkpoint", at("run"), "--file", real, "--json"});
    EXPECT_GE(got["examples"], 500);
    EXPECT_GT(got["perplexity"].get<double>(), 10);
  }
}

TEST_F(AppCommands, FlopsOfAttentionAlone) {
  const nlohmann::json rows = json_of({"flops", "--type", "sfa", "--d", "128", "--k", "8", "--batch-heads", "64",
                                       "--context", "8192,65536", "--convention", "paper", "--json"});
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1]["context"], 65536);
  EXPECT_NEAR(rows[1]["attention_flops"].get<double>() * 1e-12, 72.57, 0.01);
  EXPECT_NEAR(rows[1]["kv_ratio"].get<double>(), 0.547, 0.0005);
  EXPECT_NEAR(rows[1]["kv_ratios"]["index_32bit"].get<double>(), 0.594, 0.0005);
  const Ended table = sfa(
      {"flops", "--type", "dense", "--d", "64", "--batch-heads", "64", "--context", "32768", "--convention", "paper"});
  EXPECT_NE(table.out.find("17.94"), std::string::npos) << table.out;
  for (const std::vector<std::string>& wrong : {std::vector<std::string>{"flops"},
                                                {"flops", "--type", "sfa", "--d", "8", "--context", "8"},
                                                {"flops", "--type", "dense", "--d", "8", "--k", "2", "--context", "8"},
                                                {"flops", "--type", "dense", "--d", "8"},
                                                {"flops", at("run.yaml"), "--type", "dense", "--d", "8"}})
    EXPECT_EQ(sfa(wrong).code, 2);
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

// A tokenizer named by a relative path is found from anywhere, also when data and run were moved away from it.
TEST_F(AppCommands, ARunKeepsItsTokenizer) {
  const fs::path elsewhere = scratch() / "elsewhere", home = fs::current_path();
  fs::create_directories(elsewhere);
  ASSERT_EQ(sfa({"data", "train-tokenizer", "--vocab-size", "300", "--output", at("tok.json"), at("text.txt")}).code,
            0);
  fs::current_path(at(""));
  EXPECT_EQ(
      sfa({"data", "tokenize", "--tokenizer", "tok.json", "--val-fraction", "0.1", "--output", "bpe.h5", "text.txt"})
          .code,
      0);
  fs::current_path(elsewhere);
  const Ended trained = sfa({"train", at("run.yaml"), "data.train=" + at("bpe.h5"), "train.max_steps=2"});
  EXPECT_EQ(trained.code, 0) << trained.err;
  EXPECT_EQ(read_text(at("run") + "/tokenizer/tok.json"), read_text(at("tok.json")));
  fs::rename(at("run"), elsewhere / "moved");
  fs::rename(at("tok.json"), at("hidden.json"));
  const std::vector<std::string> generate{"generate", "--checkpoint", "moved", "--prompt", "the ", "--max-tokens", "3"};
  const Ended generated = sfa(generate);
  EXPECT_EQ(generated.code, 0) << generated.err;
  EXPECT_EQ(generated.out.rfind("the ", 0), 0u) << generated.out;
  // Without the copy the sentence says where was looked; another tokenizer is not taken for it.
  fs::remove_all("moved/tokenizer");
  const Ended lost = sfa(generate);
  EXPECT_EQ(lost.code, 1);
  for (const char* word : {"tok.json", "--tokenizer", "not there"})
    EXPECT_NE(lost.err.find(word), std::string::npos) << lost.err;
  std::vector<std::string> wrong = generate, right = generate;
  wrong.insert(wrong.end(), {"--tokenizer", "bytes"});
  EXPECT_NE(sfa(wrong).err.find("another one"), std::string::npos);
  right.insert(right.end(), {"--tokenizer", at("hidden.json")});
  EXPECT_EQ(sfa(right).code, 0);
  // Data whose tokenizer is gone can be trained on, and a line says so.
  const Ended warned = sfa({"train", at("run.yaml"), "data.train=" + at("bpe.h5"), "train.max_steps=1"});
  EXPECT_EQ(warned.code, 0) << warned.err;
  EXPECT_NE(warned.err.find("will need --tokenizer"), std::string::npos) << warned.err;
  fs::current_path(home);
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

TEST_F(AppCommands, Qwen3GoesThroughEveryCommand) {
  const std::vector<std::string> qwen3{"model.arch=qwen3",
                                       "model.head_dim=12",
                                       "model.num_key_value_heads=1",
                                       "model.intermediate_size=40",
                                       "model.tie_word_embeddings=false",
                                       "model.attention.rope_projection=shared"};
  const auto with = [&](std::vector<std::string> command, const std::vector<std::string>& more) {
    for (const auto* list : {&qwen3, &more}) command.insert(command.end(), list->begin(), list->end());
    return command;
  };
  const std::int64_t C = 16, F = 40, L = 2, D = 12, row = (2 + 1 + 1) * D;
  const nlohmann::json plan = json_of(with({"plan", at("run.yaml"), "--json", "--memory", "1GB"}, {}));
  EXPECT_EQ(plan["arch"], "qwen3");
  EXPECT_EQ(plan["parameters"]["embeddings"], 2 * 257 * C) << "an own head";
  EXPECT_EQ(plan["parameters"]["attention"], L * (row * C + C * 2 * D + 2 * D * D));
  EXPECT_EQ(plan["parameters"]["mlp"], L * 3 * C * F);
  EXPECT_EQ(plan["parameters"]["norms"], L * (2 * C + 2 * D) + C);
  const nlohmann::json flops = json_of(with({"flops", at("run.yaml"), "--context", "16", "--json"}, {}));
  EXPECT_EQ(flops[0]["forward_flops_per_token"], plan["forward_flops_per_token"]);
  const nlohmann::json bench = json_of(with({"bench", "step", at("run.yaml"), "--steps", "2", "--json"}, {}));
  EXPECT_EQ(bench["attention"], "sfa k=4 rope_projection=shared");
  double sum = 0;
  for (const auto& op : bench["ops"]) sum += op["ms"].get<double>();
  EXPECT_GT(sum, 0.7 * bench["watched_step_ms"].get<double>()) << "ops are missing in the table";

  ASSERT_EQ(sfa(with({"train", at("run.yaml")}, {})).code, 0);
  const nlohmann::json ppl =
      json_of({"eval", "perplexity", "--checkpoint", at("run"), "--data", at("data.h5"), "--json"});
  EXPECT_LT(ppl["loss"].get<double>(), 4.5) << "40 steps learn something of text with eight words";
  const std::vector<std::string> generate{"generate",     "--checkpoint", at("run"),       "--prompt", "the ",
                                          "--max-tokens", "10",           "--temperature", "0"};
  const Ended text = sfa(generate);
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_EQ(text.out, sfa(generate).out);
  EXPECT_EQ(json_of({"analyze", "support", "--checkpoint", at("run"), "--data", at("data.h5"), "--json"}).size(), 2u);
  // A gpt2 run is no qwen3 run, and a key of the other architecture is refused by its name.
  const Ended resumed = sfa({"train", at("run.yaml"), "--resume"});
  EXPECT_EQ(resumed.code, 1);
  EXPECT_NE(resumed.err.find("arch: qwen3"), std::string::npos) << resumed.err;
  const Ended foreign = sfa({"config", at("run.yaml"), "model.rope_theta=10000"});
  EXPECT_EQ(foreign.code, 1);
  EXPECT_NE(foreign.err.find("model.rope_theta: gpt2 has no such key, only qwen3 has it"), std::string::npos)
      << foreign.err;
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

// Blocks of their own k: every count is the sum over blocks, and the label names them.
TEST_F(AppCommands, BlocksOfTheirOwnKAreCounted) {
  const auto of = [&](const std::string& command, const std::vector<std::string>& keys) {
    std::vector<std::string> arguments{command, at("run.yaml")};
    arguments.insert(arguments.end(), keys.begin(), keys.end());
    arguments.emplace_back("--json");
    const nlohmann::json out = json_of(arguments);
    return out.is_array() ? out[0] : out;
  };
  const std::string own = "model.attention.k_by_layer=[2,6]";
  for (const std::string command : {"flops", "plan"}) {
    const auto two = of(command, {"model.attention.k=2"}), six = of(command, {"model.attention.k=6"}),
               both = of(command, {own});
    for (const char* key : {"kv_bytes_per_token", "forward_flops_per_token"})
      EXPECT_NEAR(2 * both[key].get<double>(), two[key].get<double>() + six[key].get<double>(), 1e-6) << command << key;
  }
  EXPECT_NEAR(2 * of("flops", {own})["kv_ratio"].get<double>(),
              of("flops", {"model.attention.k=2"})["kv_ratio"].get<double>() +
                  of("flops", {"model.attention.k=6"})["kv_ratio"].get<double>(),
              1e-12);
  // Values of 8 bits: pieces of 16 and a scale for the 8 of a head here.
  EXPECT_EQ(of("flops", {"model.attention.kv_cache=int8", "--dtype", "bf16"})["kv_bytes_per_token"],
            2 * 2 * (4 * 3 + 16 + 2));
  ASSERT_EQ(sfa({"train", at("run.yaml"), own, "model.attention.score_scale=0.5", "train.k_anneal.from=8"}).code, 0);
  EXPECT_EQ(json_of({"compare", at("run"), "--json"})[0]["attention"], "sfa k=2,6 from k=8 score_scale=0.5");
}

}  // namespace
}  // namespace sfa::test
