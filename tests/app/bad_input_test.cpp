// Bad input: one sentence on standard error that names the culprit, exit code 1 (2 when the command line itself is
// wrong), and every file as it was.
#include <functional>

#include "app/program.h"
#include "core/context.h"
#include "golden/golden_file.h"

namespace sfa::test {
namespace {

class AppBadInput : public AppTest {
 protected:
  // The command fails with `code`, says one line that holds every word of `words`, and changes nothing.
  void refused(const std::vector<std::string>& arguments, int code, const std::vector<std::string>& words) const {
    const auto before = snapshot();
    const Ended ended = sfa(arguments);
    std::string shown;
    for (const std::string& a : arguments) shown += a + " ";
    SCOPED_TRACE(shown + "\n" + ended.err);
    EXPECT_EQ(ended.code, code) << "signal " << ended.signal;
    EXPECT_EQ(std::count(ended.err.begin(), ended.err.end(), '\n'), 1);
    EXPECT_EQ(ended.err.rfind("sfa: ", 0), 0u);
    EXPECT_EQ(ended.out, "");
    for (const std::string& word : words) EXPECT_NE(ended.err.find(word), std::string::npos) << word;
    const auto after = snapshot();
    for (const auto& [path, content] : before) {
      const auto now = after.find(path);
      EXPECT_TRUE(now != after.end() && now->second == content) << path << " was changed";
    }
    for (const auto& [path, content] : after) EXPECT_TRUE(before.contains(path)) << path << " is new";
  }
  void train_refused(const std::vector<std::string>& overrides, const std::vector<std::string>& words) const {
    std::vector<std::string> arguments{"train", at("run.yaml")};
    arguments.insert(arguments.end(), overrides.begin(), overrides.end());
    refused(arguments, 1, words);
  }
  static void flip_bit(const std::string& file, double place) {
    std::string bytes = read_text(file);
    bytes[static_cast<std::size_t>(place * static_cast<double>(bytes.size() - 1))] ^= 0x10;
    write_text(file, bytes);
  }
  static void truncate(const std::string& file, double part) {
    fs::resize_file(file, static_cast<std::uintmax_t>(part * static_cast<double>(fs::file_size(file))));
  }
};

TEST_F(AppBadInput, Configuration) {
  train_refused({"trian.lr=1"}, {"trian.lr", "train.lr"});
  train_refused({"train.learning_rat=1"}, {"train.learning_rat", "train.lr"});
  train_refused({"hidden_sise=1"}, {"hidden_sise", "model.hidden_size"});
  train_refused({"train.max_steps=many"}, {"train.max_steps", "whole number", "many"});
  train_refused({"train.max_steps=1.5"}, {"train.max_steps", "whole number"});
  train_refused({"train.max_steps=0"}, {"train.max_steps", "positive"});
  train_refused({"train.lr=fast"}, {"train.lr", "number", "fast"});
  train_refused({"train.lr=nan"}, {"train.lr", "number"});
  train_refused({"data.shuffle=perhaps"}, {"data.shuffle", "true or false"});
  train_refused({"data.shuffle=[1, 2]"}, {"data.shuffle", "list"});
  train_refused({"device=tpu"}, {"device", "tpu", "cuda"});
  train_refused({"model.attention.type=sparse"}, {"model.attention.type", "sparse", "dense"});
  train_refused({"model.attention.k=9"}, {"model.attention.k", "9", "8"});
  train_refused({"model.attention.k=0"}, {"model.attention.k"});
  train_refused({"model.attention.k=-1"}, {"model.attention.k"});
  train_refused({"model.num_attention_heads=3"}, {"model.num_attention_heads", "16"});
  train_refused({"model.num_key_value_heads=3"}, {"model.num_key_value_heads"});
  train_refused({"model.hidden_size=0"}, {"model.hidden_size"});
  train_refused({"data.seq_len=17"}, {"data.seq_len", "17", "16"});
  train_refused({"data.micro_batch_size=3"}, {"data.micro_batch_size", "3", "4"});
  train_refused({"model.hidden_size=65536", "model.attention.qk_head_dim=64", "model.num_hidden_layers=64"},
                {"not enough memory", "weights", "not even one sequence"});
  train_refused({"data.batch_size=16000000", "data.micro_batch_size=0"},
                {"not enough memory", "data.micro_batch_size=", "would fit (16000000 was asked for)"});
  train_refused({"train.max_steps=99999999999999999999"}, {"train.max_steps"});
  refused({"train", at("nothing.yaml")}, 1, {"nothing.yaml"});
  refused({"train", at("")}, 1, {at(""), "folder"});
  write_text(at("broken.yaml"), "model: {num_hidden_layers: 2\ntrain: [");
  refused({"train", at("broken.yaml")}, 1, {"broken.yaml", "YAML"});
  write_text(at("list.yaml"), "- 1\n- 2\n");
  refused({"train", at("list.yaml")}, 1, {"list.yaml"});
  write_text(at("twice.yaml"), "seed: 1\nseed: 2\n");
  refused({"config", at("twice.yaml")}, 1, {"twice.yaml", "seed"});
  write_text(at("empty.yaml"), "");
  refused({"train", at("empty.yaml")}, 1, {"output_dir"});
}

TEST_F(AppBadInput, CommandLine) {
  const auto usage = [&](const std::vector<std::string>& arguments) {
    const auto before = snapshot();
    const Ended ended = sfa(arguments);
    EXPECT_EQ(ended.code, 2) << ended.err;
    EXPECT_NE(ended.err, "");
    EXPECT_EQ(snapshot(), before);
  };
  usage({});
  usage({"tarin"});
  EXPECT_EQ(sfa({"tarin", "x"}).err, "sfa: there is no command 'tarin' (sfa --help)\n");
  EXPECT_EQ(sfa({"eval", "perplexty"}).err, "sfa: there is no command 'perplexty' (sfa eval --help)\n");
  usage({"train"});
  usage({"train", at("run.yaml"), "train.max_steps"});
  usage({"train", at("run.yaml"), "--resmue"});
  usage({"eval", "perplexity"});
  usage({"eval", "perplexity", "--checkpoint", at("run"), "--data", at("data.h5"), "--split", "test"});
  usage({"generate", "--checkpoint", at("run"), "--max-tokens", "many"});
  usage({"data", "tokenize", at("text.txt")});
}

TEST_F(AppBadInput, DataToTrainOn) {
  train_refused({"data.train="}, {"data.train"});
  train_refused({"data.train=" + at("nothing.h5")}, {"nothing.h5"});
  train_refused({"data.train=" + at("nothing*.h5")}, {"nothing*.h5"});
  train_refused({"data.train=" + at("text.txt")}, {"text.txt"});
  train_refused({"data.train=" + at("")}, {at("")});
  write_text(at("empty.h5"), "");
  train_refused({"data.train=" + at("empty.h5")}, {"empty.h5"});
  for (const double part : {0.1, 0.5, 0.9}) {
    fs::copy_file(at("data.h5"), at("short.h5"), fs::copy_options::overwrite_existing);
    truncate(at("short.h5"), part);
    train_refused({"data.train=" + at("short.h5")}, {"short.h5"});
  }
  train_refused({"model.vocab_size=300"}, {"model.vocab_size", "300", "257"});
  train_refused({"data.val=" + at("nothing.h5")}, {"nothing.h5"});
  write_text(at("tiny.txt"), "few");
  ASSERT_EQ(sfa({"data", "tokenize", "--output", at("tiny.h5"), at("tiny.txt")}).code, 0);
  train_refused({"data.train=" + at("tiny.h5")}, {"tiny.h5"});
  // Data of another tokenizer for validation.
  const std::string other = source_dir() + "/tests/tokenizer/golden/small_gpt2.json";
  ASSERT_EQ(sfa({"data", "tokenize", "--tokenizer", other, "--output", at("other.h5"), at("text.txt")}).code, 0);
  train_refused({"data.val=" + at("other.h5")}, {"other.h5", "tokenizer"});
}

TEST_F(AppBadInput, FlippedBitsInData) {
  // Wherever the bit is: either nothing that was read depends on it, or it is found. It never trains on wrong tokens.
  const std::string whole = read_text(at("data.h5"));
  const Ended good = sfa({"train", at("run.yaml")});
  ASSERT_EQ(good.code, 0) << good.err;
  const auto expected = tensors(at("run"));
  int found = 0;
  for (int i = 0; i <= 12; ++i) {
    write_text(at("flipped.h5"), whole);
    flip_bit(at("flipped.h5"), i / 12.0);
    const Ended ended = sfa({"train", at("run.yaml"), "data.train=" + at("flipped.h5"), "output_dir=" + at("flipped")});
    SCOPED_TRACE(std::to_string(i) + ": " + ended.err);
    ASSERT_EQ(ended.signal, 0);
    if (ended.code == 0) {
      EXPECT_EQ(tensors(at("flipped")), expected);
    } else {
      EXPECT_EQ(ended.code, 1);
      EXPECT_NE(ended.err.find("flipped.h5"), std::string::npos);
      ++found;
    }
    fs::remove_all(at("flipped"));
  }
  EXPECT_GE(found, 3);
}

TEST_F(AppBadInput, RunFolders) {
  train_refused({"output_dir=" + at("text.txt")}, {"text.txt"});
  train_refused({"output_dir=" + at("text.txt/run")}, {"text.txt"});
  train_refused({"output_dir=/proc/sfa_run"}, {"/proc/sfa_run"});
  ASSERT_EQ(sfa({"train", at("run.yaml"), "train.max_steps=4"}).code, 0);
  train_refused({}, {at("run"), "--resume"});
  // The checkpoint of another shape, seed, or data order.
  train_refused({"--resume", "model.hidden_size=32"}, {"hidden_size"});
  train_refused({"--resume", "model.num_hidden_layers=1"}, {"num_hidden_layers"});
  train_refused({"--resume", "seed=4"}, {"seed"});
  train_refused({"--resume", "model.attention.k=5"}, {"k"});
}

// Killed before its first checkpoint, and started again as another run: nothing of the first would be in the second.
TEST_F(AppBadInput, ABegunRunIsNotTakenOverByAnother) {
  ASSERT_EQ(sfa({"train", at("run.yaml"), "train.max_steps=2"}).code, 0);
  for (const fs::path& checkpoint : list_checkpoints(at("run"))) fs::remove_all(checkpoint);
  train_refused({"--resume", "train.max_steps=2", "train.lr=0.02"}, {"config.yaml", "'lr: 0.01'", "'lr: 0.02'"});
  train_refused({"--resume", "train.max_steps=2", "model.hidden_size=32"}, {"hidden_size: 16", "hidden_size: 32"});
  train_refused({"--resume"}, {"max_steps: 2", "max_steps: 40"});
  // What changes no weight, or sums alone, may change: another number of ranks has micro-batches of its own.
  const Ended again = sfa({"train", at("run.yaml"), "--resume", "train.max_steps=2", "train.log_every=1",
                           "checkpoint.every=1", "train.eval_every=1", "data.micro_batch_size=1", "dist.timeout_s=60"});
  EXPECT_EQ(again.code, 0) << again.err;
}

TEST_F(AppBadInput, AFullStandardOutputIsSaid) {
  const Ended ended = Program({"-c", "exec " + std::string(SFA_BINARY) + " config " + at("run.yaml") + " > /dev/full"},
                              scratch(), "/dev/null", {}, "bash")
                          .wait();
  EXPECT_EQ(ended.code, 1);
  EXPECT_NE(ended.err.find("standard output can't be written"), std::string::npos) << ended.err;
}

TEST_F(AppBadInput, NoGpuWhereOneIsDemanded) {
  if (cuda_available()) GTEST_SKIP() << "this machine has a GPU";
  train_refused({"device=cuda"}, {"device", "cuda"});
  ASSERT_EQ(sfa({"train", at("run.yaml"), "train.max_steps=4"}).code, 0);
  refused({"eval", "perplexity", "--checkpoint", at("run"), "--data", at("data.h5"), "--device", "cuda"}, 1, {"cuda"});
  refused({"generate", "--checkpoint", at("run"), "--device", "cuda"}, 1, {"cuda"});
}

TEST_F(AppBadInput, Checkpoints) {
  const auto perplexity = [&](const std::string& checkpoint, const std::vector<std::string>& words) {
    refused({"eval", "perplexity", "--checkpoint", checkpoint, "--data", at("data.h5")}, 1, words);
    refused({"generate", "--checkpoint", checkpoint, "--prompt", "a"}, 1, words);
  };
  perplexity(at("nothing"), {"nothing"});
  perplexity(at("data.h5"), {"data.h5"});
  fs::create_directories(at("empty"));
  perplexity(at("empty"), {"empty"});
  ASSERT_EQ(sfa({"train", at("run.yaml"), "train.max_steps=4"}).code, 0);
  const std::string good = at("run") + "/step_00000004";
  const auto damaged = [&](const std::string& file, const std::function<void(const std::string&)>& damage) {
    const std::string bad = at("damaged");
    fs::remove_all(bad);
    fs::copy(good, bad, fs::copy_options::recursive);
    damage(bad + "/" + file);
    perplexity(bad, {"damaged"});
  };
  damaged("manifest.json", [](const std::string& f) { truncate(f, 0.5); });
  damaged("manifest.json", [](const std::string& f) { truncate(f, 0.0); });
  damaged("manifest.json", [](const std::string& f) { flip_bit(f, 0.5); });
  damaged("rank_00000.h5", [](const std::string& f) { truncate(f, 0.5); });
  damaged("rank_00000.h5", [](const std::string& f) { fs::remove(f); });
  // A bit of the weights themselves: they fill the file's last third (moments come first by name).
  damaged("rank_00000.h5", [](const std::string& f) {
    std::string bytes = read_text(f);
    for (std::size_t i = bytes.size() / 16; i < bytes.size(); i += bytes.size() / 16) bytes[i] ^= 1;
    write_text(f, bytes);
  });
}

TEST_F(AppBadInput, Evaluation) {
  ASSERT_EQ(sfa({"train", at("run.yaml"), "train.max_steps=4"}).code, 0);
  const std::vector<std::string> start{"eval", "perplexity", "--checkpoint", at("run")};
  const auto eval = [&](std::vector<std::string> more, const std::vector<std::string>& words) {
    more.insert(more.begin(), start.begin(), start.end());
    refused(more, 1, words);
  };
  eval({"--data", at("nothing.h5")}, {"nothing.h5"});
  eval({"--data", at("text.txt")}, {"text.txt"});
  eval({"--data", at("data.h5"), "--seq-len", "17"}, {"--seq-len", "17", "16"});
  eval({"--data", at("data.h5"), "--batch-size", "0"}, {"--batch-size"});
  eval({"--data", at("data.h5"), "--set", "model.intermediate_size=32"}, {"shape"});
  const std::string other = source_dir() + "/tests/tokenizer/golden/small_gpt2.json";
  ASSERT_EQ(sfa({"data", "tokenize", "--tokenizer", other, "--output", at("other.h5"), at("text.txt")}).code, 0);
  eval({"--data", at("other.h5"), "--split", "all"}, {"other.h5", "vocabulary"});
  ASSERT_EQ(sfa({"data", "tokenize", "--output", at("no_val.h5"), at("text.txt")}).code, 0);
  eval({"--data", at("no_val.h5")}, {"no_val.h5"});
  refused({"generate", "--checkpoint", at("run"), "--max-tokens", "0"}, 1, {"--max-tokens"});
  refused({"generate", "--checkpoint", at("run"), "--temperature", "-1"}, 1, {"--temperature"});
  refused({"generate", "--checkpoint", at("run"), "--top-k", "-1"}, 1, {"--top-k"});
  refused({"compare", at("nothing")}, 1, {"nothing"});
  refused({"compare", at("")}, 1, {"config.yaml"});
  refused({"flops", at("run.yaml"), "data.train=" + at("nothing.h5")}, 1, {"model.vocab_size"});
  refused({"flops", at("run.yaml"), "--context", "0"}, 1, {"--context"});
}

TEST_F(AppBadInput, Text) {
  const auto tokenize = [&](const std::vector<std::string>& more, const std::vector<std::string>& words) {
    std::vector<std::string> arguments{"data", "tokenize", "--output", at("new.h5")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    refused(arguments, 1, words);
  };
  tokenize({at("nothing.txt")}, {"nothing.txt"});
  tokenize({at("text.txt"), "--tokenizer", at("nothing.json")}, {"nothing.json"});
  tokenize({at("text.txt"), "--val-fraction", "1.5"}, {"1.5"});
  write_text(at("empty.txt"), "");
  tokenize({at("empty.txt")}, {"no text", "new.h5"});
  write_text(at("broken.jsonl"), "{\"text\": \"good\"}\n{\"text\": \n");
  tokenize({at("broken.jsonl")}, {"broken.jsonl", "2"});
  refused({"data", "tokenize", "--output", at("data.h5"), at("text.txt")}, 1, {"data.h5", "--force"});
  refused({"data", "tokenize", "--output", at("text.txt/new.h5"), at("text.txt")}, 1, {at("text.txt")});
  refused({"data", "info", at("nothing.h5")}, 1, {"nothing.h5"});
  refused({"data", "info", at("text.txt")}, 1, {"text.txt"});
}

}  // namespace
}  // namespace sfa::test
