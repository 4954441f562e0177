// GPT-2 and Qwen3 as a whole: evaluation, causality, document masks, generation over KV caches, rounding to bf16,
// counted work.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "models/training_run.h"
#include "support/compare.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

ModelConfig small(const std::string& type = "dense") {
  ModelConfig c;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 4;
  c.hidden_size = 48;
  c.max_position_embeddings = 20;
  c.vocab_size = 90;
  c.initializer_range = 0.15;  // large enough that attention is far from uniform
  c.attention.type = type;
  if (type == "sfa") c.k = 4;
  return c;
}

// Heads that are not hidden_size / num_attention_heads wide, two query heads a key head, an own head.
ModelConfig small_qwen3(const std::string& type = "dense") {
  ModelConfig c = small(type);
  c.arch = "qwen3";
  c.num_key_value_heads = 2;
  c.head_dim = 16;
  c.intermediate_size = 80;
  c.tie_word_embeddings = false;
  c.rope_theta = 100;
  return c;
}

std::vector<std::int32_t> some_tokens(std::int64_t n, std::int64_t V, int salt = 0) {
  std::vector<std::int32_t> out;
  for (std::int64_t i = 0; i < n; ++i) out.push_back(static_cast<std::int32_t>((i * i * 7 + 3 * i + salt + i / 5) % V));
  return out;
}

std::vector<float> weights(const ParameterList& list) {
  std::vector<float> flat(static_cast<std::size_t>(list.flat_size()));
  initialize_parameters(list, 3, Tensor(flat.data(), DType::f32, Device::cpu, {list.flat_size()}));
  for (const Parameter& p : list.all())  // gates that matter
    for (std::int64_t i = 0; p.init == Init::identity && p.shape.size() == 1 && i < p.numel(); ++i)
      flat[static_cast<std::size_t>(p.offset + i)] += 0.3f * static_cast<float>(i % 5);
  return flat;
}

class ModelTest : public DeviceTest {
 protected:
  // Losses of a forward pass alone, with memory planned for evaluation.
  std::vector<float> evaluate(const ModelConfig& given, const std::vector<std::int32_t>& tokens,
                              const std::vector<std::int32_t>& targets, std::int64_t B, std::int64_t T,
                              const std::vector<std::int32_t>& first_key = {}) {
    ModelConfig config = given;
    config.resolve();
    const auto model = make_model(config, ctx.device(), DType::f32);
    const std::int64_t n = model->parameters().flat_size();
    model->bind(pool.floats(weights(model->parameters()), {n}), Tensor{});
    ModelArenas arenas(ctx.device());
    plan_model(*model, arenas, B, T, false);
    const Tensor losses = pool.poisoned(DType::f32, {B * T});
    model->evaluate(ctx, arenas,
                    {pool.integers(tokens, {B, T}), pool.integers(targets, {B, T}),
                     first_key.empty() ? Tensor{} : pool.integers(first_key, {B, T})},
                    losses);
    return values_of(ctx, losses);
  }
};

std::vector<ModelConfig> variants() {
  std::vector<ModelConfig> all{small(), small("sfa"), small("sfa"), small("sfa"), small()};
  all[2].num_key_value_heads = 2;
  all[2].qk_head_dim = 16;
  all[2].attention.selection = "topk_2of4";
  all[3].attention.zero_overlap = "mask";
  all[3].attention.window = 6;
  all[4].attention.window = 5;
  for (const ModelConfig& c : {small_qwen3(), small_qwen3("sfa"), small_qwen3("sfa"), small_qwen3()}) all.push_back(c);
  all[6].attention.selection = "topk_2of4";
  all[6].tie_word_embeddings = true;
  all[7].rope_projection = "shared";
  all[7].attention.window = 6;
  all[8].rope_projection = "per_head";
  all[8].qk_head_dim = 8;
  // The rivals: short embeddings, queries and keys alone at half the width, one key head, a window under SFA.
  for (const ModelConfig& c : {small(), small(), small(), small("sfa")}) all.push_back(c);
  all[9].head_dim = 6;
  all[10].qk_head_dim = 6;
  all[11].num_key_value_heads = 1;
  all[12].attention.window = 6;
  // Blocks of their own k, fewer first and fewer last; scores by another factor.
  for (const ModelConfig& c : {small("sfa"), small_qwen3("sfa"), small(), small("sfa")}) all.push_back(c);
  all[13].k_by_layer = {3, 9};
  all[14].k_by_layer = {11, 2};
  all[15].attention.score_scale = 0.7;
  all[16].attention.score_scale = 0.7;
  // Gates and balanced features: rows of their own, kept from forward to backward.
  for (const ModelConfig& c : {small("sfa"), small("sfa"), small_qwen3("sfa"), small_qwen3("sfa")}) all.push_back(c);
  for (const std::size_t i : {17, 19, 20}) all[i].attention.gate = "feature";
  for (const std::size_t i : {18, 19}) all[i].attention.balance = 0.01;
  all[20].rope_projection = "shared";
  return all;
}

TEST_P(ModelTest, EvaluationGivesTheLossesOfTraining) {
  for (const ModelConfig& config : variants()) {
    const std::int64_t B = 2, T = 13;
    const auto tokens = some_tokens(B * T, 90), targets = some_tokens(B * T, 90, 1);
    TrainingRun run(ctx, config, B, T);
    run.set_weights(weights(run.model->parameters()));
    const auto trained = run.micro_step(tokens.data(), targets.data(), nullptr, 1.0f);
    EXPECT_EQ(evaluate(config, tokens, targets, B, T), trained);
    for (float l : trained) EXPECT_TRUE(l > 0 && l < 20) << l;
  }
}

TEST_P(ModelTest, NoTokenSeesALaterOne) {
  for (const ModelConfig& config : variants()) {
    const std::int64_t T = 16, changed = 9;
    auto tokens = some_tokens(T, 90);
    const auto targets = some_tokens(T, 90, 1);
    const auto before = evaluate(config, tokens, targets, 1, T);
    tokens[changed] = (tokens[changed] + 1) % 90;
    const auto after = evaluate(config, tokens, targets, 1, T);
    for (std::size_t t = 0; t < changed; ++t) EXPECT_EQ(before[t], after[t]) << t;
    EXPECT_NE(before[changed], after[changed]);
  }
}

TEST_P(ModelTest, DocumentsDoNotSeeEachOther) {
  for (const ModelConfig& config : variants()) {
    const std::int64_t B = 2, T = 14, start = 6;
    auto tokens = some_tokens(B * T, 90);
    const auto targets = some_tokens(B * T, 90, 1);
    std::vector<std::int32_t> first(static_cast<std::size_t>(B * T));
    for (std::int64_t t = start; t < T; ++t) first[static_cast<std::size_t>(t)] = start;
    const auto before = evaluate(config, tokens, targets, B, T, first);
    for (std::size_t t = 0; t < start; ++t) tokens[t] = (tokens[t] + 11) % 90;
    const auto after = evaluate(config, tokens, targets, B, T, first);
    for (std::size_t t = start; t < static_cast<std::size_t>(B * T); ++t) EXPECT_EQ(before[t], after[t]) << t;
    EXPECT_NE(before[0], after[0]);
  }
}

// Fed in pieces, the model must give at every piece's end the logits that one pass gives there: the loss of one target
// tells.
TEST_P(ModelTest, GenerationOverCachesEqualsOnePass) {
  for (ModelConfig config : variants()) {
    const std::int64_t B = 2, T = 12;
    const auto tokens = some_tokens(B * T, 90), targets = some_tokens(B * T, 90, 1);
    const auto want = evaluate(config, tokens, targets, B, T);
    config.resolve();
    const auto model = make_model(config, ctx.device(), DType::f32);
    model->bind(pool.floats(weights(model->parameters()), {model->parameters().flat_size()}), Tensor{});
    for (const auto& pieces : std::vector<std::vector<std::int64_t>>{{5, 1, 1, 1, 4}, {1, 1, 5, 5}, {12}}) {
      const auto generation = model->start_generation(ctx, B, 14, *std::max_element(pieces.begin(), pieces.end()));
      std::int64_t at = 0;
      for (const std::int64_t n : pieces) {
        std::vector<std::int32_t> piece;
        for (std::int64_t b = 0; b < B; ++b)
          piece.insert(piece.end(), tokens.begin() + b * T + at, tokens.begin() + b * T + at + n);
        const Tensor logits = model->feed(ctx, *generation, pool.integers(piece, {B, n}));
        at += n;
        EXPECT_EQ(generation->length, at);
        ASSERT_EQ(logits.dim(0), B);
        ASSERT_EQ(logits.dim(1), config.padded_vocab_size());
        const auto got = values_of(ctx, logits);
        for (std::int64_t b = 0; b < B; ++b) {
          const std::size_t row = static_cast<std::size_t>(b * config.padded_vocab_size()),
                            place = static_cast<std::size_t>(b * T + at - 1);
          double total = 0;
          for (std::size_t v = 0; v < 90; ++v) total += std::exp(static_cast<double>(got[row + v]));
          EXPECT_NEAR(std::log(total) - static_cast<double>(got[row + static_cast<std::size_t>(targets[place])]),
                      static_cast<double>(want[place]), 2e-5);
        }
      }
      // Two tokens still fit, a third does not.
      const Tensor one = pool.integers(std::vector<std::int32_t>(static_cast<std::size_t>(B), 1), {B, 1});
      EXPECT_NO_THROW(model->feed(ctx, *generation, one));
      EXPECT_NO_THROW(model->feed(ctx, *generation, one));
      EXPECT_THROW(model->feed(ctx, *generation, one), Error);
    }
    EXPECT_THROW((void)model->start_generation(ctx, 1, 21, 1), Error) << "more than the model has positions";
  }
}

TEST_P(ModelTest, SameBitsEveryRun) {
  ModelConfig both = small("sfa");
  both.attention.gate = "feature";
  both.attention.balance = 0.1;
  for (const ModelConfig& config : {small(), small("sfa"), small_qwen3(), small_qwen3("sfa"), both}) {
    const auto tokens = some_tokens(3 * 15, 90), targets = some_tokens(3 * 15, 90, 1);
    std::vector<float> first;
    for (int attempt = 0; attempt < 3; ++attempt) {
      TrainingRun run(ctx, config, 3, 15);
      run.set_weights(weights(run.model->parameters()));
      for (int step = 0; step < 3; ++step) {
        run.micro_step(tokens.data(), targets.data(), nullptr, 1.0f / 45);
        run.update(1e-2f);
      }
      const auto now = values_of(ctx, run.buffers.params);
      if (attempt == 0) first = now;
      EXPECT_EQ(now, first);
    }
  }
}

TEST_P(ModelTest, AStepOfAnotherSizeWasNotPlanned) {
  TrainingRun run(ctx, small(), 2, 8);
  const Tensor tokens = pool.zeros(DType::i32, {2, 9}), losses = pool.zeros(DType::f32, {18});
  EXPECT_THROW(run.model->forward_backward(ctx, run.arenas, {tokens, tokens, Tensor{}}, 1.0f, losses), Error);
}

SFA_ON_EVERY_DEVICE(ModelTest);

// The CPU's imitation of a GPU in bf16: weights are rounded, losses stay close to those in f32, training goes on.
TEST(ModelRounding, TrainsLikeF32) {
  for (const ModelConfig& config : {small(), small("sfa"), small_qwen3(), small_qwen3("sfa")}) {
    const auto tokens = some_tokens(4 * 16, 90), targets = some_tokens(4 * 16, 90, 1);
    std::vector<std::vector<double>> curves;
    for (const bool round : {false, true}) {
      Context ctx(Device::cpu);
      ctx.round_bf16 = round;
      TrainingRun run(ctx, config, 4, 16);
      run.set_weights(weights(run.model->parameters()));
      std::vector<double> curve;
      for (int step = 0; step < 8; ++step) {
        double loss = 0;
        for (float l : run.micro_step(tokens.data(), targets.data(), nullptr, 1.0f / 64)) loss += l;
        curve.push_back(loss / 64);
        run.update(3e-3f);
      }
      EXPECT_LT(curve.back(), 0.8 * curve.front());
      EXPECT_EQ(all_bf16(values_of(ctx, run.buffers.params)), round);
      EXPECT_FALSE(all_bf16(values_of(ctx, run.buffers.master)));
      curves.push_back(curve);
    }
    for (std::size_t i = 0; i < curves[0].size(); ++i)
      EXPECT_NEAR(curves[0][i], curves[1][i], 0.02 * curves[0][i]) << "step " << i;
  }
}

// Counted by hand for one small shape: T = 8, C = 48, H = 4, D = 12, F = 192, L = 2, V = 90.
TEST(Cost, CountsTheMathematicsOfGpt2) {
  ModelConfig config = small();
  config.resolve();
  const auto model = make_model(config, Device::cpu, DType::f32);
  const ModelCost c = model->cost(8);
  const double matrices = 2 * (144.0 * 48 + 48 * 48 + 2 * 48 * 192) + 90 * 48;
  const double pairs = 8 * 9 / 2, attention = 2 * 2 * pairs * 4 * (12 + 12) / 8;
  EXPECT_DOUBLE_EQ(c.attention_flops_per_token, attention);
  EXPECT_DOUBLE_EQ(c.forward_flops_per_token, 2 * matrices + attention);
  EXPECT_DOUBLE_EQ(c.backward_flops_per_token, 4 * matrices + 2 * 2 * pairs * 4 * (3 * 12 + 2 * 12) / 8);
  EXPECT_DOUBLE_EQ(c.kv_bytes_per_token, 2 * 4 * (12 + 12) * 4.0);
  ModelConfig sparse = small("sfa");
  sparse.resolve();
  const ModelCost s = make_model(sparse, Device::cpu, DType::f32)->cost(8);
  EXPECT_DOUBLE_EQ(s.attention_flops_per_token, 2 * 2 * pairs * 4 * (16.0 / 12 + 12) / 8)
      << "k^2 / d shared features a pair";
  EXPECT_DOUBLE_EQ(s.kv_bytes_per_token, 2 * 4 * (4 * (4 + 1) + 12 * 4.0)) << "k values and k one-byte indices a key";
  sparse.attention.gate = "feature";
  sparse.attention.balance = 0.01;
  const ModelCost both = make_model(sparse, Device::cpu, DType::f32)->cost(8);
  EXPECT_DOUBLE_EQ(both.parameters - s.parameters, 2 * (4 + 4) * 12.0) << "a factor a feature of 4 + 4 heads";
  EXPECT_DOUBLE_EQ(both.attention_saved_bytes_per_token - s.attention_saved_bytes_per_token, 2 * 2 * (4 + 4) * 12 * 4.0)
      << "queries and keys before the gate and before selection";
  EXPECT_DOUBLE_EQ(both.forward_flops_per_token, s.forward_flops_per_token);
}

// T = 8, C = 48, H = 4, G = 2, D = 16, F = 80, L = 2, V = 90.
TEST(Cost, CountsTheMathematicsOfQwen3) {
  ModelConfig config = small_qwen3();
  config.resolve();
  const ModelCost c = make_model(config, Device::cpu, DType::f32)->cost(8);
  const double matrices = 2 * (128.0 * 48 + 48 * 64 + 3 * 48 * 80) + 90 * 48, pairs = 8 * 9 / 2;
  const double attention = 2 * 2 * pairs * 4 * (16 + 16) / 8;
  EXPECT_DOUBLE_EQ(c.attention_flops_per_token, attention);
  EXPECT_DOUBLE_EQ(c.forward_flops_per_token, 2 * matrices + attention);
  EXPECT_DOUBLE_EQ(c.backward_flops_per_token, 4 * matrices + 2 * 2 * pairs * 4 * (3 * 16 + 2 * 16) / 8);
  EXPECT_DOUBLE_EQ(c.parameters, matrices + 90 * 48 + 2 * (2 * 48 + 2 * 16) + 48) << "the embedding multiplies nothing";
  EXPECT_DOUBLE_EQ(c.kv_bytes_per_token, 2 * 2 * (16 + 16) * 4.0);
  for (const auto& [projection, heads] : {std::pair{"shared", 2}, {"per_head", 4 + 2}}) {
    ModelConfig mapped = small_qwen3();
    mapped.rope_projection = projection;
    mapped.resolve();
    const ModelCost m = make_model(mapped, Device::cpu, DType::f32)->cost(8);
    EXPECT_DOUBLE_EQ(m.parameters - c.parameters, 2 * heads * 16.0 * 16);
    EXPECT_DOUBLE_EQ(m.forward_flops_per_token - c.forward_flops_per_token, 2.0 * 2 * (4 + 2) * 16 * 16);
    EXPECT_DOUBLE_EQ(m.backward_flops_per_token - c.backward_flops_per_token, 4.0 * 2 * (4 + 2) * 16 * 16);
  }
}

}  // namespace
}  // namespace sfa::test
