// train.recompute: whole blocks computed again give the very bits of keeping everything; outputs computed again do
// where nothing is rounded, and stay within rounding elsewhere. Both take less memory, and exactly what was planned.
#include <gtest/gtest.h>

#include <cmath>

#include "models/training_run.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

constexpr std::int64_t B = 2, T = 21;
constexpr int kVariants = 11;  // four of GPT-2, three of Qwen3, one each with blocks of their own k

ModelConfig variant(int which, const std::string& recompute) {
  ModelConfig c;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 2;
  c.hidden_size = 128;  // heads of 64: the tiled cores serve them
  c.max_position_embeddings = 32;
  c.vocab_size = 90;
  c.initializer_range = 0.08;
  c.recompute = recompute;
  if (which > 0) {
    c.attention.type = "sfa";
    c.k = 8;
  }
  if (which == 2) c.attention.selection = "topk_2of4";
  if (which == 3) {
    c.attention.window = 6;
    c.num_key_value_heads = 1;
  }
  if (which == 7 || which == 8) c.k_by_layer = {5, 12, 9};
  if (which >= 9) {
    c.attention.gate = "feature";
    c.attention.balance = 0.05;
  }
  if (which >= 4 && which != 7 && which != 9) {
    c.arch = "qwen3";
    c.num_key_value_heads = 1;
    c.intermediate_size = 96;
    c.k = which == 4 ? 0 : 8;
    c.attention.type = which == 4 ? "dense" : "sfa";
    c.rope_projection = which == 6 ? "shared" : "none";
  }
  return c;
}

struct Outcome {
  std::vector<float> losses, gradients, weights;
  std::size_t planned;
};

class RecomputeTest : public DeviceTest {
 protected:
  // Three updates of two micro-batches each; the gradients of the last.
  Outcome train(const ModelConfig& config, DType dtype) {
    TrainingRun run(ctx, config, B, T, dtype);
    std::vector<float> flat(static_cast<std::size_t>(run.model->parameters().flat_size()));
    initialize_parameters(run.model->parameters(), 3,
                          Tensor(flat.data(), DType::f32, Device::cpu, {run.model->parameters().flat_size()}));
    run.set_weights(flat);
    Outcome out;
    for (int step = 0; step < 3; ++step) {
      for (int micro = 0; micro < 2; ++micro) {
        std::vector<std::int32_t> tokens, targets, first;
        for (std::int32_t i = 0; i < B * T; ++i) {
          tokens.push_back((i * i * 7 + 3 * i + micro + i / 5) % 90);
          targets.push_back((i * i * 7 + 3 * i + step + i / 4) % 90);
          first.push_back(i % T < 9 ? 0 : 9);
        }
        const bool documents = step == 2;
        out.losses = run.micro_step(tokens.data(), targets.data(), documents ? first.data() : nullptr, 1.0f / 84);
      }
      if (step == 2) out.gradients = values_of(ctx, run.buffers.gradients);
      run.update(1e-2f);
    }
    out.weights = values_of(ctx, run.buffers.master);
    out.planned = run.arenas.activations.peak() + run.arenas.scratch.peak();
    return out;
  }
  std::vector<DType> types() const {
    return ctx.on_cuda() ? std::vector{DType::f32, DType::bf16} : std::vector{DType::f32};
  }
};

TEST_P(RecomputeTest, BlocksComputedAgainGiveTheSameBits) {
  for (const DType type : types())
    for (int which = 0; which < kVariants; ++which)
      for (const bool round : {false, true}) {
        if (round && ctx.on_cuda()) continue;
        SCOPED_TRACE(fmt::format("variant {} {}{}", which, name_of(type), round ? ", rounded" : ""));
        ctx.round_bf16 = round;
        const Outcome kept = train(variant(which, "none"), type), again = train(variant(which, "block"), type);
        EXPECT_EQ(kept.losses, again.losses);
        EXPECT_EQ(kept.gradients, again.gradients);
        EXPECT_EQ(kept.weights, again.weights);
        EXPECT_LT(again.planned, kept.planned);
      }
}

TEST_P(RecomputeTest, OutputsComputedAgainStayWithinRounding) {
  for (const DType type : types())
    for (int which = 0; which < kVariants; ++which)
      for (const bool round : {false, true}) {
        if (round && ctx.on_cuda()) continue;
        SCOPED_TRACE(fmt::format("variant {} {}{}", which, name_of(type), round ? ", rounded" : ""));
        ctx.round_bf16 = round;
        const Outcome kept = train(variant(which, "none"), type), again = train(variant(which, "ops"), type),
                      twice = train(variant(which, "ops"), type);
        EXPECT_EQ(again.gradients, twice.gradients) << "two runs give the same bits";
        EXPECT_LT(again.planned, kept.planned);
        if (!ctx.on_cuda() && !round) {
          EXPECT_EQ(kept.gradients, again.gradients);
          EXPECT_EQ(kept.weights, again.weights);
          continue;
        }
        double difference = 0, size = 0;
        for (std::size_t i = 0; i < kept.gradients.size(); ++i) {
          difference += std::pow(static_cast<double>(kept.gradients[i] - again.gradients[i]), 2);
          size += std::pow(static_cast<double>(kept.gradients[i]), 2);
        }
        EXPECT_LT(std::sqrt(difference / size), 0.03) << "after three updates, each with activations rounded otherwise";
        EXPECT_GT(size, 0);
      }
}

SFA_ON_EVERY_DEVICE(RecomputeTest);

// 124M at B = 64, T = 1024 in bf16: what a plan says needs no card.
TEST(Recompute, MemoryOfALargeModelByPlan) {
  std::map<std::string, double> gigabytes;
  for (const char* recompute : {"none", "ops", "block"}) {
    ModelConfig c;
    c.vocab_size = 50257;
    c.attention.impl = "reference";  // the one attention whose plan needs no card; it keeps what the tiled one keeps
    c.recompute = recompute;
    c.resolve();
    const auto model = make_model(c, Device::cuda, DType::bf16);
    Arena saved("saved", Device::cuda);
    ModelArenas arenas(Device::cuda);
    model->plan(arenas, 64, 1024);
    gigabytes[recompute] = static_cast<double>(arenas.activations.peak()) * 1e-9;
  }
  EXPECT_NEAR(gigabytes["none"], 19.68, 0.05);
  EXPECT_NEAR(gigabytes["ops"], 12.93, 0.05);
  EXPECT_NEAR(gigabytes["block"], 3.1, 0.2);
}

}  // namespace
}  // namespace sfa::test
