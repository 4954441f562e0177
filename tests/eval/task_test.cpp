// Zero-shot tasks: files in their published layouts against the scores that transformers gives by the same rules
// (tests/golden/make_tasks.py).
#include "eval/task.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "eval/task_score.h"
#include "golden/golden_file.h"
#include "support/compare.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

std::string tasks_folder() {
  return source_dir() + "/tests/golden/tasks/";
}

// The model of make_tasks.py.
ModelConfig golden_model(const Tokenizer& tokenizer) {
  ModelConfig c;
  c.hidden_size = 32;
  c.num_attention_heads = 2;
  c.intermediate_size = 64;
  c.num_hidden_layers = 2;
  c.max_position_embeddings = 96;
  c.vocab_size = tokenizer.vocab_size();
  c.resolve();
  return c;
}

class Tasks : public DeviceTest {
 protected:
  void SetUp() override {
    tokenizer = load_tokenizer(source_dir() + "/tests/tokenizer/golden/small_gpt2.json");
    model = make_model(golden_model(*tokenizer), ctx.device(), DType::f32);
    const ParameterList& list = model->parameters();
    std::vector<float> flat(static_cast<std::size_t>(list.flat_size()));
    for (std::size_t number = 0; number < list.all().size(); ++number) {
      const Parameter& p = list.all()[number];
      const bool norm_weight = p.name.find("norm") != std::string::npos && p.name.ends_with("weight");
      const auto n = normal(p.numel(), number);
      for (std::size_t i = 0; i < n.size(); ++i)
        flat[static_cast<std::size_t>(p.offset) + i] =
            p.shape.size() == 2 ? 0.12f * n[i] : 0.1f * n[i] + (norm_weight ? 1.0f : 0.0f);
    }
    model->bind(pool.floats(flat, {list.flat_size()}), Tensor{});
  }

  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Model> model;
};

TEST_P(Tasks, ScoresAreThoseOfTransformers) {
  const auto expected = nlohmann::json::parse(std::ifstream(tasks_folder() + "expected.json"));
  for (const std::string& name : task_names())
    for (const std::int64_t batch_tokens : {0, 100}) {  // 100: one row at a time
      SCOPED_TRACE(name);
      const nlohmann::json& want = expected.at(name);
      const Task task = read_task(name, tasks_folder() + name + ".jsonl", "", 0);
      const TaskScore got = score_task(ctx, *model, *tokenizer, task, {.batch_tokens = batch_tokens});
      EXPECT_DOUBLE_EQ(got.acc.value, want["acc"].get<double>());
      ASSERT_EQ(got.scores.size(), want["log_likelihoods"].size());
      for (std::size_t i = 0; i < got.scores.size(); ++i) {
        const auto values = want["log_likelihoods"][i].get<std::vector<double>>();
        ASSERT_EQ(got.scores[i].size(), values.size());
        for (std::size_t c = 0; c < values.size(); ++c)
          EXPECT_NEAR(got.scores[i][c].log_likelihood, values[c], 1e-3) << "example " << i << ", choice " << c;
      }
      if (task.choices) {
        EXPECT_DOUBLE_EQ(got.acc_norm.value().value, want["acc_norm"].get<double>());
        EXPECT_FALSE(got.perplexity);
      } else {
        EXPECT_NEAR(got.perplexity.value() / want["perplexity"].get<double>(), 1, 1e-4);
        EXPECT_EQ(got.correct, want["greedy"].get<std::vector<bool>>());
      }
      EXPECT_EQ(got.truncated, name == "piqa" || name == "hellaswag" ? 1 : 0);
    }
}

TEST_P(Tasks, ScoreIsASumOfStepsOfTheModelItself) {
  // The same continuation, one token more at a time: differences are log-probabilities, at most 0.
  ScoreRequest all = encode_pair(*tokenizer, "the query meets", " a key and values");
  std::vector<ScoreRequest> requests;
  for (std::size_t n = 0; n <= all.continuation.size(); ++n)
    requests.push_back(
        {all.context, {all.continuation.begin(), all.continuation.begin() + static_cast<std::ptrdiff_t>(n)}});
  const std::vector<Score> scores = score(ctx, *model, requests, {});
  EXPECT_EQ(scores[0].log_likelihood, 0);
  for (std::size_t n = 1; n < scores.size(); ++n) EXPECT_LT(scores[n].log_likelihood, scores[n - 1].log_likelihood);
  std::vector<std::int32_t> long_one(97, 5);
  EXPECT_THROW(score(ctx, *model, {{{1}, long_one}}, {}), Error);
  long_one.pop_back();
  EXPECT_TRUE(score(ctx, *model, {{{1, 2}, long_one}}, {}).front().truncated);
}

SFA_ON_EVERY_DEVICE(Tasks);

TEST(TaskItems, AreContextAndChoices) {
  const Task task = read_task("arc_easy", tasks_folder() + "arc_easy.jsonl", "", 2);
  ASSERT_EQ(task.items.size(), 2u);
  EXPECT_EQ(task.items[1].gold, 1u);
  EXPECT_EQ(task.items[0].context, "Question: Which meets a key?\nAnswer:");
  EXPECT_EQ(task.items[0].continuations[2], " the colour of the sea");
}

TEST(TaskPairs, WhiteSpaceGoesToTheContinuation) {
  const auto tokenizer = load_tokenizer(source_dir() + "/tests/tokenizer/golden/small_gpt2.json");
  const ScoreRequest a = encode_pair(*tokenizer, "the key ", "meets"), b = encode_pair(*tokenizer, "the key", " meets");
  EXPECT_EQ(a.context, b.context);
  EXPECT_EQ(a.continuation, b.continuation);
  const ScoreRequest empty = encode_pair(*tokenizer, "", "meets");
  EXPECT_EQ(empty.context, std::vector<std::int32_t>{static_cast<std::int32_t>(tokenizer->end_of_text())});
  EXPECT_EQ(tokenizer->decode(std::vector<std::uint32_t>(empty.continuation.begin(), empty.continuation.end())),
            "meets");
}

class TaskFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder = std::filesystem::temp_directory_path() / ("sfa_tasks_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }
  std::string file(const std::string& name, const std::string& content) const {
    std::ofstream(folder / name) << content;
    return (folder / name).string();
  }
  static std::string refusal(const std::string& task, const std::string& path, const std::string& labels = "") {
    try {
      read_task(task, path, labels, 0);
    } catch (const Error& e) {
      return e.what();
    }
    return "no refusal";
  }
  std::filesystem::path folder;
};

TEST_F(TaskFiles, AnArrayIsReadLikeLines) {
  const std::string line = R"({"goal": "g", "sol1": "a", "sol2": "b", "label": 1})";
  for (const std::string& text : {line + "\n\n" + line + "\r\n", " [" + line + ",\n" + line + "]"}) {
    const Task task = read_task("piqa", file("x.json", text), "", 0);
    ASSERT_EQ(task.items.size(), 2u);
    EXPECT_EQ(task.items[1].gold, 1u);
    EXPECT_EQ(read_task("piqa", file("x.json", text), "", 1).items.size(), 1u);
  }
}

TEST_F(TaskFiles, RefusalsNameFileRecordAndWhatIsMissing) {
  const auto says = [&](const std::string& message, const std::vector<std::string>& parts) {
    for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  says(refusal("piqa", file("p.jsonl", R"({"goal": "g", "sol1": "a", "sol2": "b"})")),
       {"p.jsonl", "record 1", "label"});
  says(refusal("hellaswag", file("h.jsonl", R"({"ctx_a": "a"})")), {"h.jsonl", "record 1", "ctx_b"});
  says(refusal("hellaswag",
               file("h.jsonl",
                    R"({"ctx_a": "a", "ctx_b": "b", "activity_label": "c", "endings": ["x", "y"], "label": ""})")),
       {"record 1", "label", "0 to 1"});
  says(refusal("arc_easy",
               file("a.jsonl", R"({"question": "q", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "B"})")),
       {"record 1", "'B'"});
  says(refusal("lambada_openai", file("l.jsonl", "{\"text\": \"a b\"}\n{\"text\": \"alone\"}\n")),
       {"record 2", "last word"});
  says(refusal("lambada_openai", file("l.jsonl", "{\"text\": \"a b\"}\nnot json\n")), {"record 2", "JSON"});
  says(refusal("lambada_openai", file("l.jsonl", "\n")), {"no record"});
  says(refusal("lambada_openai", file("l.jsonl", "{\"text\": \"a \xff b\"}")), {"UTF-8"});
  says(refusal("arc_easy", file("a.jsonl", "{}"), "labels.lst"), {"--labels"});
  says(refusal("winogrande", file("a.jsonl", "{}")), {"winogrande", "hellaswag"});
}

}  // namespace
}  // namespace sfa::test
