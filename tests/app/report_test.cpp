// `sfa compare --html`: one self-contained file whose every number is in the file of the run that it names.
#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "app/program.h"

namespace sfa::test {
namespace {

using nlohmann::json;

class Report : public AppTest {
 protected:
  // Trains, and keeps the losses of all validation documents.
  void train(const std::string& name, const std::vector<std::string>& overrides) {
    std::vector<std::string> command{"train", at("run.yaml"), "output_dir=" + at(name)};
    command.insert(command.end(), overrides.begin(), overrides.end());
    const Ended trained = sfa(command);
    ASSERT_EQ(trained.code, 0) << trained.err;
    const Ended kept =
        sfa({"eval", "perplexity", "--checkpoint", at(name), "--data", at("docs.h5"), "--split", "all", "--save"});
    ASSERT_EQ(kept.code, 0) << kept.err;
  }

  void SetUp() override {
    AppTest::SetUp();
    std::string lines;
    for (std::uint32_t i = 0; i < 30; ++i) lines += json{{"text", text(120 + 7 * i, i)}}.dump() + "\n";
    write_text(at("docs.jsonl"), lines);
    ASSERT_EQ(sfa({"data", "tokenize", "--output", at("docs.h5"), at("docs.jsonl")}).code, 0);
  }

  std::string report(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "compare");
    arguments.insert(arguments.end(), {"--html", at("report.html")});
    const Ended ended = sfa(arguments);
    EXPECT_EQ(ended.code, 0) << ended.err;
    return read_text(at("report.html"));
  }
};

std::string unescaped(std::string text) {
  for (const auto& [from, to] : {std::pair{"&lt;", "<"}, {"&gt;", ">"}, {"&quot;", "\""}, {"&amp;", "&"}})
    for (std::size_t i = text.find(from); i != std::string::npos; i = text.find(from, i + 1))
      text.replace(i, std::string(from).size(), to);
  return text;
}

// The number that a file has under a key: newest line of .jsonl, a path of .json, a top-level key of .yaml.
double number_in(const std::string& file, const std::string& key) {
  if (file.ends_with(".jsonl")) {
    std::stringstream lines(read_text(file));
    double found = std::nan("");
    for (std::string line; std::getline(lines, line);) {
      const json object = json::parse(line);
      if (object.contains(key) && object[key].is_number()) found = object[key].get<double>();
    }
    return found;
  }
  if (file.ends_with(".json")) return json::parse(read_text(file)).at(json::json_pointer("/" + key)).get<double>();
  std::smatch m;
  const std::string text = read_text(file);
  return std::regex_search(text, m, std::regex("(^|\n)" + key + ": *([-0-9.e+]+)")) ? std::stod(m[2]) : std::nan("");
}

TEST_F(Report, EveryNumberIsInTheFileThatItNames) {
  train("dense", {"model.attention.type=dense", "model.attention.k=0"});
  train("sparse", {});
  train("sparse_b", {"seed=4", "train.log_every=3", "checkpoint.keep_last=1"});  // what is looked at is no variant
  ASSERT_EQ(sfa({"analyze", "support", "--checkpoint", at("sparse"), "--data", at("data.h5"), "--save"}).code, 0);
  ASSERT_EQ(sfa({"bench", "attention", "--d", "8", "--k", "2", "--n", "32..64", "--heads", "2", "--batch", "1",
                 "--repetitions", "2", "--device", "cpu", "--json", at("latency.json")})
                .code,
            0);
  ASSERT_EQ(sfa({"eval", "passkey", "--checkpoint", at("dense"), "--lengths", "16", "--save"}).code, 1)
      << "16 positions hold no question";
  fs::create_directories(at("dense") + "/eval");
  write_text(at("dense") + "/eval/piqa.json", R"({"task": "piqa", "acc": 0.625, "acc_stderr": 0.05, "acc_norm": 0.5})");
  write_text(at("dense") + "/eval/niah_synthetic.json",
             R"({"cells": [{"length": 8, "depth": 0, "accuracy": 0.5}, {"length": 8, "depth": 1, "accuracy": 1}]})");
  const std::string page = report({at("dense"), at("sparse"), at("sparse_b"), "--latency", at("latency.json")});

  EXPECT_NE(page.find("3 run(s) of 2 variant(s)"), std::string::npos);

  const std::regex cell("data-file=\"([^\"]*)\" data-key=\"([^\"]*)\" data-value=\"([^\"]*)\"");
  std::set<std::string> files;
  int cells = 0;
  for (auto it = std::sregex_iterator(page.begin(), page.end(), cell); it != std::sregex_iterator(); ++it, ++cells) {
    const std::string file = unescaped((*it)[1]), key = unescaped((*it)[2]);
    EXPECT_EQ(number_in(file, key), std::stod((*it)[3])) << file << " " << key;
    files.insert(fs::path(file).filename().string());
  }
  EXPECT_GE(cells, 3 * 5 + 2 * 4 + 2 * 2);
  EXPECT_EQ(files, (std::set<std::string>{"metrics.jsonl", "config.yaml", "support.json", "latency.json", "piqa.json",
                                          "niah_synthetic.json"}));
  // A number without a file says what it was computed from.
  const std::regex bare("<td class=\"n\">");
  EXPECT_FALSE(std::regex_search(page, bare));
  // Of the two sparse runs one has the seed of the dense one, and one difference has no interval.
  EXPECT_TRUE(std::regex_search(page, std::regex("over seeds, 95 %[^>]*>")));
  EXPECT_FALSE(std::regex_search(page, std::regex("over seeds, 95 %[^>]*>\\[")));
}

// The rivals that a comparison needs, each by overrides of one dense recipe: trained, evaluated, generated from, told
// apart.
TEST_F(Report, RivalsAreConfigurationsOfOneRecipe) {
  const std::vector<std::string> dense{"model.attention.type=dense", "model.attention.k=0"};
  struct Rival {
    std::string name, label;
    bool sfa;
    std::vector<std::string> keys;
    double kv_to_dense;  // bytes of the cache, f32
  };
  const std::vector<Rival> rivals{{"full", "dense", false, {}, 1},
                                  {"short", "dense d=4", false, {"model.head_dim=4"}, 0.5},
                                  {"fair", "dense d_qk=4", false, {"model.attention.qk_head_dim=4"}, 0.75},
                                  {"window", "dense window=6", false, {"model.attention.window=6"}, 1},
                                  {"mqa", "dense kv_heads=1", false, {"model.num_key_value_heads=1"}, 0.5},
                                  {"sfa", "sfa k=2", true, {"model.attention.k=2"}, (2 * 5 + 32) / 64.0},
                                  {"sfa_2of4",
                                   "sfa k=2 2of4",
                                   true,
                                   {"model.attention.k=2", "model.attention.selection=topk_2of4"},
                                   (2 * 5 + 32) / 64.0},
                                  {"sfa_mask",
                                   "sfa k=2 mask",
                                   true,
                                   {"model.attention.k=2", "model.attention.zero_overlap=mask"},
                                   (2 * 5 + 32) / 64.0},
                                  {"window_sfa",
                                   "sfa k=2 window=6",
                                   true,
                                   {"model.attention.k=2", "model.attention.window=6"},
                                   (2 * 5 + 32) / 64.0}};
  std::vector<std::string> folders{"compare", "--json"};
  for (const Rival& r : rivals) {
    SCOPED_TRACE(r.name);
    std::vector<std::string> keys = r.sfa ? std::vector<std::string>{} : dense;
    keys.insert(keys.end(), r.keys.begin(), r.keys.end());
    keys.emplace_back("train.max_steps=6");
    train(r.name, keys);
    EXPECT_EQ(
        sfa({"generate", "--checkpoint", at(r.name), "--prompt", "the ", "--max-tokens", "4", "--seed", "1"}).code, 0);
    folders.push_back(at(r.name));
  }
  const Ended ended = sfa(folders);
  ASSERT_EQ(ended.code, 0) << ended.err;
  const json rows = json::parse(ended.out);
  for (std::size_t i = 0; i < rivals.size(); ++i) {
    EXPECT_EQ(rows[i]["attention"], rivals[i].label);
    EXPECT_DOUBLE_EQ(rows[i]["kv_bytes_per_token"].get<double>() / rows[0]["kv_bytes_per_token"].get<double>(),
                     rivals[i].kv_to_dense);
    EXPECT_TRUE(rows[i]["val_loss"].is_number());
  }
}

TEST_F(Report, IsOneFileThatLoadsNothing) {
  train("dense", {"model.attention.type=dense", "model.attention.k=0"});
  train("sparse", {});
  write_text(at("sparse") + ".command", "sfa train <it> & more");
  const std::string page = report({at("dense"), at("sparse") + "/"});
  for (const char* outside : {"http:", "https:", "<script", "<link", "<img", "@import", "url("})
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
  for (const char* needed : {"prefers-color-scheme: dark", "@media print", "<svg", "Loss against tokens",
                             "Loss against time", "sfa train &lt;it&gt; &amp; more", "sfa k=4", "95 % documents"})
    EXPECT_NE(page.find(needed), std::string::npos) << needed;
  // Elements end in the order in which they began.
  std::vector<std::string> open;
  const std::regex tag("<(/?)([a-z0-9]+)([^>]*?)(/?)>");
  const std::set<std::string> lone{"meta"};
  for (auto it = std::sregex_iterator(page.begin(), page.end(), tag); it != std::sregex_iterator(); ++it) {
    const std::string name = (*it)[2];
    if ((*it)[4].length() > 0 || lone.contains(name)) continue;
    if ((*it)[1].length() == 0) {
      open.push_back(name);
    } else {
      ASSERT_FALSE(open.empty()) << name;
      EXPECT_EQ(open.back(), name);
      open.pop_back();
    }
  }
  EXPECT_TRUE(open.empty());
}

// Where there is a browser: it draws the page, and its own reading of the page has every chart with its lines.
TEST_F(Report, ABrowserShowsIt) {
  if (std::system("command -v chromium >/dev/null 2>&1") != 0) GTEST_SKIP() << "there is no chromium here";
  train("dense", {"model.attention.type=dense", "model.attention.k=0"});
  train("sparse", {});
  (void)report({at("dense"), at("sparse")});
  const std::string browser = "cd " + scratch().string() +
                              " && timeout 100 chromium --headless --no-sandbox --disable-gpu --user-data-dir=profile ",
                    page = " file://" + at("report.html") + " ";
  ASSERT_EQ(std::system((browser + "--dump-dom" + page + ">dom.html 2>dom.log").c_str()), 0);
  const std::string dom = read_text(scratch() / "dom.html");
  std::size_t charts = 0, lines = 0;
  for (std::size_t i = dom.find("<svg class=\"chart"); i != std::string::npos;
       i = dom.find("<svg class=\"chart", i + 1))
    ++charts;
  for (std::size_t i = dom.find("<path d=\"M"); i != std::string::npos; i = dom.find("<path d=\"M", i + 1)) ++lines;
  EXPECT_EQ(charts, 5u) << "the gap, the frontier, two courses, the time";
  EXPECT_GE(lines, 8u) << "training and validation of two runs, twice";
  EXPECT_LE(lines, 9u) << "and the frontier, where both variants are on it";
  ASSERT_EQ(std::system((browser + "--window-size=1200,1600 --screenshot=page.png" + page + ">shot.log 2>&1").c_str()),
            0);
  EXPECT_GT(fs::file_size(scratch() / "page.png"), 20000u);
}

// What a cache in 8 bits costs is evaluated, and stands on the frontier with the bytes of such a cache.
TEST_F(Report, FrontierHasTheCacheInEightBits) {
  train("dense", {"model.attention.type=dense", "model.attention.k=0"});
  train("sparse", {});
  const Ended eight = sfa({"eval", "perplexity", "--checkpoint", at("dense"), "--data", at("docs.h5"), "--split", "all",
                           "--kv-cache", "int8", "--save"});
  ASSERT_EQ(eight.code, 0) << eight.err;
  const auto loss = [&](const char* name) {
    return json::parse(read_text(at("dense") + "/eval/" + name)).at("loss").get<double>();
  };
  const double added = loss("perplexity_int8.json") - loss("perplexity.json");
  EXPECT_NE(added, 0.0);
  EXPECT_LT(std::fabs(added), 0.01 * loss("perplexity.json"));
  const std::string page = report({at("dense"), at("sparse")});
  // Heads of 8 features: whole pieces of 16 bytes and a scale for a key and a value, where f32 has 64 bytes.
  const std::regex row(
      "<td>dense int8 cache</td><td[^>]*>[0-9,]+</td><td[^>]*>([0-9.]+)</td><td[^>]*>([0-9.]+)</td>"
      "<td[^>]*>([-+0-9.]+)</td><td[^>]*>([-+0-9.]+)</td>");
  std::smatch m;
  ASSERT_TRUE(std::regex_search(page, m, row));
  EXPECT_NEAR(std::stod(m[1]), 36.0 / 64, 1e-3);
  EXPECT_NEAR(std::stod(m[2]), number_in(at("dense") + "/metrics.jsonl", "val/loss") + added, 1e-4);
  EXPECT_NEAR(std::stod(m[4]), added, 1e-5);
  EXPECT_EQ(page.find("sfa k=4 int8 cache"), std::string::npos) << "it was not evaluated";
}

// One seed beside two: what that seed does to both is no merit of either.
TEST_F(Report, FrontierComparesTheSameSeeds) {
  train("dense", {"model.attention.type=dense", "model.attention.k=0"});
  train("dense_b", {"model.attention.type=dense", "model.attention.k=0", "seed=4"});
  train("sparse", {"train.max_steps=8"});
  train("sparse_b", {"train.max_steps=8", "seed=4"});
  // The text pairs by seed as well.
  const Ended table = sfa({"compare", at("dense"), at("dense_b"), at("sparse_b")});
  EXPECT_NE(table.out.find("sfa k=4 seed 4 against dense seed 4: loss "), std::string::npos) << table.out;
  const std::string page = report({at("dense"), at("dense_b"), at("sparse"), at("dense_b") + "/../sparse/"});
  EXPECT_NE(page.find("3 run(s) of 2 variant(s)"), std::string::npos) << "a folder named twice is one run";
  const auto loss = [&](const char* run) { return number_in(at(run) + "/metrics.jsonl", "val/loss"); };
  const double first = (loss("dense") + loss("dense_b")) / 2, gap = loss("sparse") - loss("dense");
  ASSERT_GT(std::fabs(loss("dense_b") - loss("dense")), 1e-3) << "two seeds that this could not tell apart";
  const std::regex row("of both\">([0-9.]+)</td><td[^>]*>([-+0-9.]+)</td>");
  std::smatch m;
  ASSERT_TRUE(std::regex_search(page, m, row));
  EXPECT_NEAR(std::stod(m[1]), first + gap, 1e-4);
  EXPECT_NEAR(std::stod(m[2]), gap, 1e-4);
  // As many seeds, but not the same ones: still the seed that both have.
  train("sparse_c", {"train.max_steps=8", "seed=5"});
  const std::string others = report({at("dense"), at("dense_b"), at("sparse"), at("sparse_c")});
  ASSERT_TRUE(std::regex_search(others, m, row));
  EXPECT_NEAR(std::stod(m[1]), first + gap, 1e-4);
}

// Latency needs no run; rivals that were timed beside it have their line and column.
TEST_F(Report, LatencyAloneWithRivals) {
  write_text(at("l.json"), R"({"device": "a card", "rows": [
    {"op": "forward", "type": "dense", "d": 64, "n": 1024, "batch": 8, "heads": 8, "ms": 0.5, "ratio_to_dense": 1,
     "rivals_ms": {"cuDNN": 0.25, "FA2": null}},
    {"op": "forward", "type": "sfa", "k": 8, "selection": "topk", "d": 64, "n": 1024, "batch": 8, "heads": 8, "ms": 0.4,
     "ratio_to_dense": 1.25, "rivals_ms": {"cuDNN": 0.25, "FA2": null}}]})");
  const std::string page = report({"--latency", at("l.json")});
  for (const char* needed : {"heads of 64, on a card", "cuDNN d=64", "rows/1/rivals_ms/cuDNN", ">0.62<", ">0.589<"})
    EXPECT_NE(page.find(needed), std::string::npos) << needed;
  for (const char* absent : {"FA2", "<h2>Runs</h2>", "KV bytes"}) EXPECT_EQ(page.find(absent), std::string::npos);
  EXPECT_EQ(sfa({"compare"}).code, 2);
  EXPECT_EQ(sfa({"compare", "--html", at("r.html")}).code, 2);
  EXPECT_EQ(sfa({"compare", at("dense"), "--latency", at("l.json")}).code, 2) << "no report to put it into";
  for (const char* hostile : {"null", R"({"rows": [1]})", R"({"rows": [{"d": "x", "n": 1, "ms": 1}]})",
                              R"({"device": 3, "rows": [{"op": "forward", "n": 1, "ms": 1}]})"}) {
    write_text(at("bad.json"), hostile);
    EXPECT_EQ(sfa({"compare", "--latency", at("bad.json"), "--html", at("r.html")}).code, 1) << hostile;
  }
  EXPECT_EQ(sfa({"compare", "--latency", at("."), "--html", at("r.html")}).code, 1);
}

TEST_F(Report, GapIsThatOfTheDocuments) {
  train("dense", {"model.attention.type=dense", "model.attention.k=0"});
  train("sparse", {"train.max_steps=8"});  // a gap that shows in four digits
  const std::string page = report({at("dense"), at("sparse")});
  double nats = 0, tokens = 0;
  for (const auto& [name, sign] : {std::pair{"sparse", 1.0}, {"dense", -1.0}}) {
    const json kept = json::parse(read_text(at(name) + "/eval/perplexity.json"));
    EXPECT_EQ(kept["documents"].size(), 30u);
    double sum = 0, count = 0;
    for (const auto& d : kept["documents"]) {
      sum += d[1].get<double>();
      count += d[0].get<double>();
    }
    EXPECT_NEAR(sum / count, kept["loss"].get<double>(), 1e-9);
    EXPECT_EQ(count, kept["tokens"].get<double>());
    nats += sign * sum;
    tokens = count;
  }
  // The interval is around the difference of the documents' losses.
  const std::regex interval("over the documents of[^>]*>\\[([-+0-9.]+), ([-+0-9.]+)\\]");
  std::smatch m;
  ASSERT_TRUE(std::regex_search(page, m, interval));
  EXPECT_LT(std::stod(m[1]), nats / tokens + 1e-4);
  EXPECT_GT(std::stod(m[2]), nats / tokens - 1e-4);
  EXPECT_LT(std::stod(m[1]), std::stod(m[2]));
  EXPECT_EQ(sfa({"compare", at("dense"), "--latency", at("docs.h5"), "--html", at("r.html")}).code, 1);
  EXPECT_EQ(sfa({"eval", "perplexity", "--checkpoint", at("nowhere"), "--data", at("docs.h5"), "--save"}).code, 1);
}

}  // namespace
}  // namespace sfa::test
