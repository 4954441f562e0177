// Needle prompts: length, depth, what is hidden and what is asked for; and scores of a model that can't know.
#include "eval/needle_task.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/compare.h"
#include "support/devices.h"
#include "tokenizer/byte_tokenizer.h"

namespace sfa::test {
namespace {

std::int64_t tokens_of(const NeedlePrompt& p) {
  std::vector<std::uint32_t> ids;
  ByteTokenizer().encode(p.context + p.answer, ids);
  return static_cast<std::int64_t>(ids.size());
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(NeedlePrompts, FillTheLengthAndHideTheAnswerWhereTheySay) {
  const ByteTokenizer tokenizer;
  for (const char* kind : {"single", "multikey", "passkey"})
    for (const std::int64_t length : {1000, 4000})
      for (const double depth : {0.0, 0.5, 1.0}) {
        SCOPED_TRACE(fmt::format("{} {} {}", kind, length, depth));
        NeedleOptions o;
        o.kind = kind;
        const NeedlePrompt p = needle_prompt(tokenizer, o, length, depth, 3);
        EXPECT_LE(tokens_of(p), length);
        EXPECT_GT(tokens_of(p), length - 60) << "one more sentence would have fitted";
        const std::string value = p.answer.substr(1);
        EXPECT_EQ(p.answer[0], ' ');
        const bool passkey = o.kind == "passkey";
        EXPECT_EQ(value.size(), passkey ? 5u : 7u);
        EXPECT_EQ(count_of(p.context, value), passkey ? 2u : 1u);
        const double at = static_cast<double>(p.context.find(value)) / static_cast<double>(p.context.size());
        EXPECT_NEAR(at, depth, passkey || o.kind == "single" ? 0.35 : 0.5) << "frame and needle take their part";
        if (depth == 0.5) {
          EXPECT_NEAR(at, 0.45, 0.2);
        }
        EXPECT_EQ(count_of(p.context, "One of the special magic numbers for"), o.kind == "multikey" ? 4u
                                                                               : passkey            ? 0u
                                                                                                    : 1u);
        EXPECT_EQ(p.context, needle_prompt(tokenizer, o, length, depth, 3).context);
        EXPECT_NE(p.context, needle_prompt(tokenizer, o, length, depth, 4).context);
      }
}

TEST(NeedlePrompts, QuestionNamesTheKeyOfTheAnswer) {
  const ByteTokenizer tokenizer;
  NeedleOptions o;
  o.kind = "multikey";
  o.keys = 12;
  for (std::uint64_t i = 0; i < 20; ++i) {
    const NeedlePrompt p = needle_prompt(tokenizer, o, 3000, 0.3, i);
    const std::string before = "What is the special magic number for ";
    const std::size_t at = p.context.find(before) + before.size();
    const std::string key = p.context.substr(at, p.context.find(" mentioned", at) - at);
    EXPECT_EQ(count_of(p.context, "numbers for " + key + " is:" + p.answer + "."), 1u);
    EXPECT_TRUE(p.context.ends_with("for " + key + " mentioned in the text is"));
  }
}

TEST(NeedlePrompts, OwnTextIsCutBetweenSentences) {
  const ByteTokenizer tokenizer;
  NeedleOptions o;
  o.kind = "single";
  o.haystack = "First one here. Second, a longer one, here! Third? ";
  const NeedlePrompt p = needle_prompt(tokenizer, o, 1200, 0.5, 1);
  EXPECT_GT(count_of(p.context, "First one here. Second, a longer one, here! Third? "), 5u);
  EXPECT_EQ(count_of(p.context, "grass"), 0u);
  EXPECT_THROW(needle_prompt(tokenizer, o, 50, 0.5, 1), Error);
}

TEST(NeedleMap, ShowsEveryCell) {
  const std::vector<NeedleCell> cells{{128, 0, 10, 10}, {128, 1, 5, 10}, {256, 0, 0, 10}, {256, 1, 1, 10}};
  EXPECT_DOUBLE_EQ(accuracy_at(cells, 128), 0.75);
  EXPECT_DOUBLE_EQ(accuracy_at(cells, 256), 0.05);
  const std::string map = needle_map(cells);
  for (const char* part : {"128", "256", "  0 %", "100 %", "██ 100", "75.0", "5.0"})
    EXPECT_NE(map.find(part), std::string::npos) << part << "\n" << map;
  const auto json = needle_json(cells);
  EXPECT_EQ(json["by_length"].size(), 2u);
  EXPECT_EQ(json["cells"][3]["accuracy"], 0.1);
}

class NeedleModel : public DeviceTest {};

TEST_P(NeedleModel, AnUntrainedModelFindsNothing) {
  const ByteTokenizer tokenizer;
  ModelConfig c;
  c.hidden_size = 16;
  c.num_attention_heads = 2;
  c.num_hidden_layers = 1;
  c.max_position_embeddings = 700;
  c.vocab_size = 257;
  c.resolve();
  const auto model = make_model(c, ctx.device(), DType::f32);
  model->bind(pool.floats(normal(model->parameters().flat_size(), 3, 0.1f), {model->parameters().flat_size()}),
              Tensor{});
  for (const char* kind : {"synthetic", "passkey"}) {
    NeedleOptions o;
    o.kind = kind;
    o.lengths = {400, 700};
    o.depths = 3;
    o.samples = 2;
    const auto cells = find_needles(ctx, *model, tokenizer, o, {});
    ASSERT_EQ(cells.size(), 6u);
    EXPECT_EQ(cells[4].depth, 0.5);
    EXPECT_LE(accuracy_at(cells, 400), 0.34);
  }
  NeedleOptions o;
  o.lengths = {701};
  EXPECT_THROW(find_needles(ctx, *model, tokenizer, o, {}), Error);
}

SFA_ON_EVERY_DEVICE(NeedleModel);

}  // namespace
}  // namespace sfa::test
