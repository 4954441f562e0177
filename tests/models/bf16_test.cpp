// GPT-2 and Qwen3 in bf16 on a GPU beside the CPU that rounds after each op, and beside f32: what the card loses
// against f32 must be what bf16 itself loses, which the CPU's imitation tells. Attention by every implementation that
// serves the case; dense, SFA and 2:4 selection.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "models/training_run.h"
#include "support/compare.h"
#include "support/devices.h"

namespace sfa::test {
namespace {

constexpr std::int64_t B = 2, T = 96, V = 257, kSteps = 6;
// Starts that a loss is averaged over: whether rounding moves a feature into a support is chance, and what it then does
// to the loss of one run is several times as much in one start as in another.
constexpr std::uint64_t kStarts = 8;

ModelConfig model_of(const std::string& arch, const std::string& type, const std::string& selection) {
  ModelConfig c;
  c.arch = arch;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 2;
  c.hidden_size = 128;  // heads of 64, which the tiled cores serve
  c.max_position_embeddings = T;
  c.vocab_size = V;
  c.initializer_range = 0.08;
  c.attention.type = type;
  c.attention.selection = selection;
  if (type == "sfa") c.k = 8;
  if (arch == "qwen3") {  // heads of 128, as the published sizes have; two query heads a key head
    c.num_key_value_heads = 1;
    c.head_dim = 128;
  }
  return c;
}

struct Curve {
  std::vector<double> losses;                  // mean of each step
  std::vector<std::vector<double>> gradients;  // of the first step, one a parameter
};

Curve train(Context& ctx, ModelConfig config, const std::string& impl, DType dtype, std::uint64_t seed) {
  config.attention.impl = impl;
  TrainingRun run(ctx, config, B, T, dtype);
  const ParameterList& list = run.model->parameters();
  std::vector<float> start(static_cast<std::size_t>(list.flat_size()));
  initialize_parameters(list, seed, Tensor(start.data(), DType::f32, Device::cpu, {list.flat_size()}));
  run.set_weights(start);
  std::vector<std::int32_t> tokens, targets;
  for (std::int64_t i = 0; i < B * T; ++i) {
    tokens.push_back(static_cast<std::int32_t>((i * i + 3 * i) % 61 * 4 + i % 3));
    targets.push_back(static_cast<std::int32_t>(((i + 1) * (i + 1) + 3 * (i + 1)) % 61 * 4 + (i + 1) % 3));
  }
  Curve curve;
  for (std::int64_t step = 0; step < kSteps; ++step) {
    double loss = 0;
    for (float l : run.micro_step(tokens.data(), targets.data(), nullptr, 1.0f / (B * T)))
      loss += static_cast<double>(l);
    curve.losses.push_back(loss / (B * T));
    if (step == 0)
      for (std::size_t i = 0; i < list.all().size(); ++i)
        curve.gradients.push_back(as<double>(values_of(ctx, list.view(run.buffers.gradients, i))));
    run.update(2e-3f);
  }
  return curve;
}

// Over the steps of each run the worst difference, and of these the mean over the starts.
double loss_error(const std::vector<Curve>& a, const std::vector<Curve>& b) {
  double sum = 0;
  for (std::size_t s = 0; s < a.size(); ++s) {
    double worst = 0;
    for (std::size_t i = 0; i < a[s].losses.size(); ++i)
      worst = std::max(worst, std::fabs(a[s].losses[i] - b[s].losses[i]));
    sum += worst;
  }
  return sum / static_cast<double>(a.size());
}

struct Bf16Case {
  const char *arch, *type, *selection;
  Device device;
};

class ModelBf16 : public ::testing::TestWithParam<Bf16Case> {};

TEST_P(ModelBf16, LosesNoMoreThanBf16Does) {
  const auto [arch, type, selection, device] = GetParam();
  const ModelConfig config = model_of(arch, type, selection);
  Context cpu(Device::cpu), imitation(Device::cpu), under_test(device);
  imitation.round_bf16 = true;
  under_test.round_bf16 = device == Device::cpu;
  const DType dtype = device == Device::cpu ? DType::f32 : DType::bf16;
  const auto curves = [&config = config](Context& ctx, const std::string& impl, DType stored) {
    std::vector<Curve> all;
    for (std::uint64_t start = 0; start < kStarts; ++start) all.push_back(train(ctx, config, impl, stored, 5 + start));
    return all;
  };
  const std::vector<Curve> exact = curves(cpu, "reference", DType::f32);
  const std::vector<Curve> rounded = curves(imitation, "reference", DType::f32);
  const double bf16_loses = loss_error(rounded, exact);
  ModelConfig resolved = config;
  resolved.resolve();
  const auto names = make_model(resolved, Device::cpu, DType::f32);
  int served = 0;
  for (const AttentionRow& row : attention_table()) {
    if (row.type != type || row.device != device || !row.trains ||
        !row.why_not(resolved.attention, resolved.attention_dims(), dtype).empty())
      continue;
    SCOPED_TRACE(std::string(arch) + " " + type + " " + selection + ", attention " + std::string(row.impl));
    const std::vector<Curve> got = curves(under_test, std::string(row.impl), dtype);
    const double loses = loss_error(got, exact);
    EXPECT_LE(loses, 2 * bf16_loses + 1e-3);
    EXPECT_GT(loses, 1e-6) << "nothing was rounded";
    double worst = 0;
    for (std::size_t i = 0; i < got[0].gradients.size(); ++i) {
      // Twice what the imitation loses, and a unit of bf16 where that was lucky.
      const std::vector<double>& want = exact[0].gradients[i];
      const double rounding = norm_error(rounded[0].gradients[i], want);
      EXPECT_TRUE(near_in_norm(got[0].gradients[i], want, 2 * rounding + kUnitBf16))
          << names->parameters().all()[i].name;
      worst = std::max(worst, norm_error(got[0].gradients[i], want) / (rounding + kUnitBf16 / 2));
    }
    std::printf(
        "  bf16 on %s, %s %s %s, attention %s: losses %.1e from f32 (imitation %.1e), gradients %.2f of its error\n",
        name_of(device), arch, type, selection, std::string(row.impl).c_str(), loses, bf16_loses, worst);
    ++served;
  }
  EXPECT_GE(served, 1);
}

std::vector<Bf16Case> bf16_cases() {
  std::vector<Bf16Case> all;
  for (const Device device : devices())
    for (const char* arch : {"gpt2", "qwen3"})
      for (const auto& [type, selection] : {std::pair{"dense", "topk"}, {"sfa", "topk"}, {"sfa", "topk_2of4"}})
        all.push_back({arch, type, selection, device});
  return all;
}

std::string bf16_name(const ::testing::TestParamInfo<Bf16Case>& one) {
  return std::string(one.param.arch) + "_" + one.param.type + "_" + one.param.selection + "_" +
         name_of(one.param.device);
}

INSTANTIATE_TEST_SUITE_P(Variants, ModelBf16, ::testing::ValuesIn(bf16_cases()), bf16_name);

// The logits of the last token after `pieces` were fed through KV caches.
std::vector<float> generate(Context& ctx, ModelConfig config, const std::string& impl, DType dtype,
                            const std::vector<std::int64_t>& pieces) {
  config.attention.impl = impl;
  TrainingRun run(ctx, config, B, T, dtype);  // holds the weights
  const ParameterList& list = run.model->parameters();
  std::vector<float> start(static_cast<std::size_t>(list.flat_size()));
  initialize_parameters(list, 5, Tensor(start.data(), DType::f32, Device::cpu, {list.flat_size()}));
  run.set_weights(start);
  Pool pool(ctx);
  const auto generation = run.model->start_generation(ctx, B, T, *std::max_element(pieces.begin(), pieces.end()));
  std::vector<float> logits;
  std::int64_t at = 0;
  for (const std::int64_t n : pieces) {
    std::vector<std::int32_t> tokens;
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t i = b * T + at; i < b * T + at + n; ++i)
        tokens.push_back(static_cast<std::int32_t>((i * i + 3 * i) % 61 * 4 + i % 3));
    logits = values_of(ctx, run.model->feed(ctx, *generation, pool.integers(tokens, {B, n})));
    at += n;
  }
  return logits;
}

// Prompt and decoding are as far from f32 as the whole sequence in one piece is: rounding to bf16 differs between the
// two, and no more.
TEST(Bf16Generation, CachesAreAsCloseToF32AsOnePass) {
  std::string why;
  if (!cuda_available(&why)) GTEST_SKIP() << "no GPU can be used: " << why;
  Context cpu(Device::cpu), gpu(Device::cuda);
  for (const auto& [arch, type, selection] : {std::tuple{"gpt2", "dense", "topk"},
                                              {"gpt2", "sfa", "topk"},
                                              {"gpt2", "sfa", "topk_2of4"},
                                              {"qwen3", "dense", "topk"},
                                              {"qwen3", "sfa", "topk"}}) {
    SCOPED_TRACE(std::string(arch) + " " + type + " " + selection);
    const ModelConfig config = model_of(arch, type, selection);
    const auto exact = generate(cpu, config, "reference", DType::f32, {T});
    const auto error = [&](const std::vector<float>& got) {
      double difference = 0, norm = 0;
      for (std::size_t i = 0; i < got.size(); ++i) {
        difference += std::pow(static_cast<double>(got[i]) - static_cast<double>(exact[i]), 2);
        norm += std::pow(static_cast<double>(exact[i]), 2);
      }
      return std::sqrt(difference / norm);
    };
    const double one_pass = error(generate(gpu, config, "auto", DType::bf16, {T}));
    for (const auto& pieces : std::vector<std::vector<std::int64_t>>{{70, 9, 16, 1}, {50, 45, 1}, {95, 1}})
      EXPECT_LE(error(generate(gpu, config, "auto", DType::bf16, pieces)), 2 * one_pass);
  }
}

}  // namespace
}  // namespace sfa::test
