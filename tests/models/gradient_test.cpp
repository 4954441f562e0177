// Gradients of whole models against differences of the loss: along each parameter's own gradient, so that what float32
// leaves of a difference is large enough to compare.
#include <gtest/gtest.h>

#include <cmath>

#include "core/rng.h"
#include "models/training_run.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

constexpr std::int64_t B = 2, T = 11, V = 70;

std::vector<ModelConfig> configs() {
  ModelConfig gpt2;
  gpt2.num_hidden_layers = 2;
  gpt2.num_attention_heads = 2;
  gpt2.hidden_size = 24;
  gpt2.max_position_embeddings = 16;
  gpt2.vocab_size = V;
  gpt2.initializer_range = 0.2;
  ModelConfig qwen3 = gpt2;
  qwen3.arch = "qwen3";
  qwen3.num_key_value_heads = 1;
  qwen3.head_dim = 10;
  qwen3.rope_theta = 50;
  ModelConfig untied = qwen3, shared = qwen3, per_head = qwen3;
  untied.tie_word_embeddings = false;
  untied.attention.window = 5;
  shared.rope_projection = "shared";
  per_head.rope_projection = "per_head";
  per_head.qk_head_dim = 6;
  ModelConfig narrow = gpt2;
  narrow.head_dim = 4;
  // Gates, behind which all features are kept: a support does not change on the way.
  ModelConfig gated = narrow, gated_qwen3 = shared, rotated_gate = qwen3;
  for (ModelConfig* c : {&gated, &gated_qwen3, &rotated_gate}) {
    c->attention.type = "sfa";
    c->attention.gate = "feature";
    c->k = c->head_dim;
  }
  return {gpt2, narrow, qwen3, untied, shared, per_head, gated, gated_qwen3, rotated_gate};
}

class GradientTest : public DeviceTest {};

TEST_P(GradientTest, AgreesWithDifferencesOfTheLoss) {
  std::vector<std::int32_t> tokens, targets;
  for (std::int32_t i = 0; i < B * T; ++i) {
    tokens.push_back((i * i * 7 + 3 * i + i / 5) % V);
    targets.push_back(i % 6 == 2 ? -1 : (i * i * 5 + 2 * i) % V);
  }
  for (const ModelConfig& config : configs()) {
    TrainingRun run(ctx, config, B, T);
    const ParameterList& list = run.model->parameters();
    std::vector<float> flat(static_cast<std::size_t>(list.flat_size()));
    initialize_parameters(list, 3, Tensor(flat.data(), DType::f32, Device::cpu, {list.flat_size()}));
    for (const Parameter& p : list.all())  // away from ones and from the identity
      for (std::int64_t i = 0; i < p.numel(); ++i)
        flat[static_cast<std::size_t>(p.offset + i)] +=
            0.1f * normal_at(9, kPurposeTest, 0, static_cast<std::uint64_t>(p.offset + i));
    const auto loss_at = [&](const std::vector<float>& weights) {
      run.set_weights(weights);
      double total = 0;
      for (const float l : run.micro_step(tokens.data(), targets.data(), nullptr, 1.0f))
        total += static_cast<double>(l);
      return total;
    };
    ctx.zero(run.buffers.gradients);
    loss_at(flat);
    const auto gradients = values_of(ctx, run.buffers.gradients);
    for (const Parameter& p : list.all()) {
      double squares = 0;
      for (std::int64_t i = 0; i < p.numel(); ++i)
        squares += std::pow(gradients[static_cast<std::size_t>(p.offset + i)], 2);
      const double norm = std::sqrt(squares), step = 2e-3;
      ASSERT_GT(norm, 1e-3) << config.arch << " " << p.name << " has no gradient";
      std::vector<float> up = flat, down = flat;
      for (std::int64_t i = 0; i < p.numel(); ++i) {
        const std::size_t at = static_cast<std::size_t>(p.offset + i);
        const float d = static_cast<float>(step / norm) * gradients[at];
        up[at] += d;
        down[at] -= d;
      }
      const double slope = (loss_at(up) - loss_at(down)) / (2 * step);
      EXPECT_NEAR(slope, norm, 0.01 * norm + 2e-3)
          << config.arch << " " << config.rope_projection << " " << config.attention.gate << " " << p.name;
    }
  }
}

SFA_ON_EVERY_DEVICE(GradientTest);

}  // namespace
}  // namespace sfa::test
