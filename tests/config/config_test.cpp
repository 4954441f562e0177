// Configuration: what is written is what is read, every key is documented, every recipe in configs/ is valid.
#include "config/config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/error.h"
#include "golden/golden_file.h"

namespace sfa::test {
namespace {

std::string file_text(const std::string& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string message_of(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  try {
    (void)parse_config(yaml, "test.yaml", overrides);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Config, ReferenceIsDocumented) {
  const std::string document = file_text(source_dir() + "/docs/configuration.md");
  EXPECT_NE(document.find(config_reference()), std::string::npos)
      << "docs/configuration.md must hold the table that `sfa config --reference` prints, as it prints it";
}

TEST(Config, RecipesAreValidAndComeBackAsWritten) {
  int recipes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(source_dir() + "/configs")) {
    if (entry.path().extension() != ".yaml") continue;
    SCOPED_TRACE(entry.path().string());
    const Config config = load_config(entry.path().string(), {});
    const std::string dumped = dump_config(config);
    EXPECT_EQ(dump_config(parse_config(dumped, "dump", {})), dumped);
    ++recipes;
  }
  EXPECT_GE(recipes, 3);
}

TEST(Config, ARangeOfStepsIsAList) {
  const auto steps = [](const std::string& text) {
    return parse_config("output_dir: x\ntrain: {profile_steps: " + text + "}\n", "test.yaml", {}).train.profile_steps;
  };
  EXPECT_EQ(steps("[3, 5]"), (StepRange{3, 5}));
  EXPECT_EQ(steps("[]"), StepRange{});
  EXPECT_EQ(parse_config("output_dir: x\n", "test.yaml", {"train.profile_steps=[2,2]"}).train.profile_steps,
            (StepRange{2, 2}));
  EXPECT_FALSE(StepRange{}.contains(0)) << "steps are counted from 1";
  for (const char* wrong : {"7", "[7]", "[5, 3]", "[0, 2]", "[1, 2, 3]", "[a, b]", "[1.5, 2]"})
    EXPECT_NE(message_of(std::string("output_dir: x\ntrain: {profile_steps: ") + wrong + "}\n")
                  .find("test.yaml:2: train.profile_steps: two steps [first, last] are expected"),
              std::string::npos)
        << wrong << ": " << message_of(std::string("output_dir: x\ntrain: {profile_steps: ") + wrong + "}\n");
  EXPECT_EQ(message_of("output_dir: [x, y]\n"), "test.yaml:1: output_dir: a single value is expected, not a list");
}

TEST(Config, NanoGptNamesAreAliases) {
  const Config c =
      parse_config("output_dir: x\nmodel: {n_layer: 3, n_head: 4, n_embd: 64}\nblock_size: 32\nmax_iters: 7\n",
                   "test.yaml", {"learning_rate=0.25"});
  EXPECT_EQ(c.model.num_hidden_layers, 3);
  EXPECT_EQ(c.model.num_attention_heads, 4);
  EXPECT_EQ(c.model.hidden_size, 64);
  EXPECT_EQ(c.model.max_position_embeddings, 32);
  EXPECT_EQ(c.train.max_steps, 7);
  EXPECT_EQ(c.train.lr, 0.25);
  EXPECT_NE(message_of("output_dir: x\nmodel: {n_layer: 3, num_hidden_layers: 3}\n").find("another name"),
            std::string::npos);
}

TEST(Config, OverridesWinAndTheLastOne) {
  const Config c = parse_config("output_dir: x\nseed: 1\n", "test.yaml", {"seed=2", "seed=3", "train.lr=1e-2"});
  EXPECT_EQ(c.seed, 3);
  EXPECT_EQ(c.train.lr, 0.01);
  EXPECT_THROW((void)parse_config("output_dir: x\n", "test.yaml", {"seed"}), UsageError);
}

TEST(Config, WholeNumbersMayBeWrittenWithAnExponent) {
  EXPECT_EQ(parse_config("output_dir: x\ntrain: {max_steps: 2e3}\n", "test.yaml", {}).train.max_steps, 2000);
  EXPECT_NE(message_of("output_dir: x\ntrain: {max_steps: 2.5}\n"), "");
}

TEST(Config, MessagesNameFileLineAndNearestKey) {
  const std::string unknown = message_of("output_dir: x\n\ntrain:\n  learning_rte: 1\n");
  EXPECT_NE(unknown.find("test.yaml:4"), std::string::npos) << unknown;
  EXPECT_NE(unknown.find("'train.learning_rte'"), std::string::npos) << unknown;
  EXPECT_NE(unknown.find("'train.lr'"), std::string::npos) << unknown;
}

// A file can be small and yet without end: an alias inside its own anchor, doubling at every level.
TEST(Config, AliasesWithoutEndAreRefused) {
  EXPECT_NE(message_of("model: &a {b: *a}\n").find("levels deep"), std::string::npos);
  std::string doubling = "x0: &x0 {a: {}, b: {}}\n";
  for (int i = 1; i < 30; ++i) doubling += fmt::format("x{0}: &x{0} {{a: *x{1}, b: *x{1}}}\n", i, i - 1);
  EXPECT_NE(message_of(doubling), "");
}

TEST(Config, SizesBeyondReasonAreRefused) {
  EXPECT_NE(message_of("output_dir: x\nmodel: {hidden_size: 9000000000000}\n").find("hidden_size"), std::string::npos);
  EXPECT_NE(message_of("output_dir: x\nmodel: {vocab_size: 9000000000000}\n").find("vocab_size"), std::string::npos);
  // 2^32 + 8 must not pass as 8.
  EXPECT_NE(message_of("output_dir: x\nmodel: {attention: {type: sfa, k: 4294967304}}\n").find("attention.k"),
            std::string::npos);
}

TEST(Config, TextOfAnyKindIsPrintedAsItIsRead) {
  Config c = parse_config("output_dir: x\n", "test.yaml", {});
  for (const std::string name : {"two\nlines", "tab\there", "it's", "a \"word\" \\ ", "\x7f\u00e9 #: [", "null", "~"}) {
    c.output_dir = name;
    EXPECT_EQ(parse_config(dump_config(c), "printed", {}).output_dir, name);
  }
}

TEST(Config, DerivedValuesAreResolved) {
  const Config c = parse_config("output_dir: x\nmodel: {hidden_size: 64, num_attention_heads: 4}\n", "test.yaml",
                                {"model.attention.type=sfa", "model.attention.k=8"});
  EXPECT_EQ(c.model.intermediate_size, 256);
  EXPECT_EQ(c.model.qk_head_dim, 16);
  EXPECT_EQ(c.model.num_key_value_heads, 4);
  EXPECT_EQ(c.model.attention.k_q, 8);
  EXPECT_EQ(c.model.attention.k_k, 8);
  EXPECT_EQ(c.data.seq_len, c.model.max_position_embeddings);
  EXPECT_EQ(c.data.micro_batch_size, c.data.batch_size);
}

// A run keeps its configuration resolved: k_q and k_k stand there beside k.
TEST(Config, AnOverrideOfKReachesAFileThatWasResolved) {
  const auto features = [](const std::string& text, const std::vector<std::string>& overrides) {
    const Config c = parse_config(text, "saved.yaml", overrides);
    return std::pair{c.model.attention.k_q, c.model.attention.k_k};
  };
  const std::string head = "output_dir: x\nmodel:\n  attention: {type: sfa, ";
  const std::string alike = dump_config(parse_config(head + "k: 8}\n", "test.yaml", {}));
  const std::string apart = dump_config(parse_config(head + "k: 8, k_q: 32}\n", "test.yaml", {}));
  EXPECT_EQ(features(alike, {"model.attention.k=4"}), (std::pair{4, 4}));
  EXPECT_EQ(features(alike, {"model.attention.k_k=4"}), (std::pair{8, 4}));
  EXPECT_EQ(features(alike, {"model.attention.k=4", "model.attention.k_q=16"}), (std::pair{16, 4}));
  EXPECT_EQ(features(apart, {"model.attention.k=4"}), (std::pair{32, 4}));
  EXPECT_EQ(
      parse_config(alike, "saved.yaml", {"model.attention.type=dense", "model.attention.k=0"}).model.attention.k_q, 0);
  try {
    parse_config(head + "k_q: 8, k_k: 6}\n", "test.yaml", {"model.attention.k=4"});
    ADD_FAILURE() << "a k that nothing follows was taken";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(),
                 "command line: model.attention.k: neither queries nor keys would keep 4, since k_q and k_k are set "
                 "too; change those");
  }
}

TEST(Config, ListsOfWholeNumbers) {
  const std::string text =
      "output_dir: x\nmodel:\n  num_hidden_layers: 3\n  attention: {type: sfa, k: 8, k_by_layer: [16, 0, 4]}\n";
  const Config c = parse_config(text, "test.yaml", {});
  EXPECT_EQ(c.model.k_by_layer, (std::vector<std::int64_t>{16, 8, 4})) << "0 is k";
  EXPECT_EQ(parse_config(dump_config(c), "printed", {}).model.k_by_layer, c.model.k_by_layer);
  EXPECT_TRUE(parse_config(text, "test.yaml", {"model.attention.k_by_layer=[]"}).model.k_by_layer.empty());
  EXPECT_EQ(c.model.attention_of(0).k_q, 16);
  EXPECT_EQ(c.model.attention_of(2).k_k, 4);
  for (const auto& [given, says] : {std::pair{"8", "a list of whole numbers is expected, got '8'"},
                                    {"[8, 1.5, 4]", "a whole number is expected, got '1.5'"},
                                    {"[8, x, 4]", "a whole number is expected, got 'x'"},
                                    {"[8, 4]", "2 entries for a model of 3 blocks"}}) {
    try {
      parse_config(text, "test.yaml", {std::string("model.attention.k_by_layer=") + given});
      ADD_FAILURE() << given;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(says), std::string::npos) << e.what();
    }
  }
}

TEST(Config, AnArchitectureHasItsOwnKeys) {
  const std::string qwen3 = "output_dir: x\nmodel: {arch: qwen3, hidden_size: 64, num_attention_heads: 4}\n",
                    gpt2 = "output_dir: x\nmodel: {hidden_size: 64, num_attention_heads: 4}\n";
  const std::string printed = dump_config(parse_config(qwen3, "test.yaml", {"model.rope_theta=1e4"}));
  EXPECT_NE(printed.find("rope_theta: 10000"), std::string::npos) << printed;
  EXPECT_EQ(printed.find("layer_norm_epsilon"), std::string::npos) << "what qwen3 does not have is not printed";
  EXPECT_EQ(parse_config(printed, "printed", {}).model.rope_theta, 1e4);
  EXPECT_EQ(dump_config(parse_config(gpt2, "test.yaml", {})).find("rope"), std::string::npos);
  const auto refused = [](const std::string& yaml, const std::string& key, const char* what) {
    try {
      (void)parse_config(yaml, "test.yaml", {key});
      ADD_FAILURE() << "accepted: " << key;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(what), std::string::npos) << e.what();
    }
  };
  refused(qwen3, "model.layer_norm_epsilon=1e-5", "layer_norm_epsilon: qwen3 has no such key, only gpt2 has it");
  for (const char* key : {"model.rms_norm_eps=1e-6", "model.rope_theta=1e6", "model.tie_word_embeddings=true",
                          "model.attention.rope_projection=none"})
    refused(gpt2, key, "gpt2 has no such key, only qwen3 has it");
  // Heads narrower than the stream's share: the short embeddings of arXiv 2603.22300.
  const ModelConfig narrow = parse_config(gpt2, "test.yaml", {"model.head_dim=8"}).model;
  EXPECT_EQ(narrow.attention_dims().Dqk, 8);
  EXPECT_EQ(narrow.attention_dims().Dv, 8);
}

TEST(Config, TheDecayOfAScheduleIsResolvedAndFits) {
  const std::string yaml = "output_dir: x\ntrain: {schedule: wsd, max_steps: 200}\n";
  EXPECT_EQ(parse_config(yaml, "test.yaml", {}).train.decay_steps, 20);
  EXPECT_EQ(parse_config(yaml, "test.yaml", {"train.max_steps=3"}).train.decay_steps, 1);
  EXPECT_EQ(message_of(yaml, {"train.decay_steps=150", "train.warmup_steps=50"}), "");
  EXPECT_NE(message_of(yaml, {"train.decay_steps=150", "train.warmup_steps=51"}).find("train.decay_steps"),
            std::string::npos);
}

TEST(Config, GradientsAreNotNarrowerThanTheProductsThatMakeThem) {
  EXPECT_NE(message_of("output_dir: x\ntrain: {dtype: fp32, grad_dtype: bf16}\n").find("train.grad_dtype"),
            std::string::npos);
  EXPECT_EQ(message_of("output_dir: x\ntrain: {dtype: bf16, grad_dtype: bf16}\n"), "");
}

TEST(Config, ChunksOfASharedSequenceAreReadInVectorsOnGpus) {
  const std::string yaml = "output_dir: x\nmodel: {attention: {type: sfa, k: 5}}\ndist: {context_parallel: 4}\n";
  EXPECT_NE(message_of(yaml, {"data.seq_len=1000"}).find("data.seq_len = 1000 in 8 chunks"), std::string::npos);
  EXPECT_EQ(message_of(yaml, {"data.seq_len=1000", "device=cpu"}), "");
  EXPECT_EQ(message_of(yaml, {"data.seq_len=1000", "model.attention.type=dense", "model.attention.k=0"}), "");
  EXPECT_EQ(message_of(yaml, {"data.seq_len=1024"}), "");
}

}  // namespace
}  // namespace sfa::test
